// histogram on the CPU. A thread counts in tables of its own and adds them to the result when it leaves a channel:
// whole numbers, so that the order of threads changes nothing.
#include "../histogram.h"

#include <torch/csrc/stable/library.h>

#include <atomic>
#include <utility>

#include "isa.h"
#include "walk.h"

#define PQ_LOOPS "histogram.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

constexpr int kTables = 4;             // neighbours that are alike count in different places: none waits for the other
constexpr int64_t kTabledBins = 4096;  // of more bins, tables would leave the first-level caches
constexpr int64_t kFull = INT64_C(1) << 30;

// Counts of one channel on the way.
class Tables {
 public:
  Tables(int64_t entries, bool many) : entries_(entries), many_(many), counts_((many ? kTables : 1) * entries) {}

  void add(const int32_t* index, int64_t n) {
    uint32_t* counts = counts_.data();
    int64_t i = 0;
    if (many_) {
      for (; i + kTables <= n; i += kTables) {
        for (int t = 0; t < kTables; ++t) ++counts[t * entries_ + index[i + t]];
      }
    }
    for (; i < n; ++i) ++counts[index[i]];
    added_ += n;
  }
  bool full() const { return added_ >= kFull; }

  void move_to(int64_t* row) {
    if (!added_) return;
    for (int64_t entry = 0; entry < entries_; ++entry) {
      int64_t count = 0;
      for (size_t at = entry; at < counts_.size(); at += entries_) count += std::exchange(counts_[at], 0);
      if (count) std::atomic_ref<int64_t>(row[entry]).fetch_add(count, std::memory_order_relaxed);
    }
    added_ = 0;
  }

 private:
  int64_t entries_, added_ = 0;
  bool many_;
  std::vector<uint32_t> counts_;
};

void count(const Walk& walk, const int64_t* exponent, int32_t bins, int64_t* rows) {
  const auto bins_of = PQ_PICK(bins_of);
  const int64_t entries = bins + kBesideBins;
  const bool many = bins <= kTabledBins && walk.per_channel >= kTables * entries;
  torch::stable::parallel_for(0, walk.channels * walk.chunks, chunk_grain(walk), [&](int64_t first, int64_t last) {
    alignas(64) float buffer[kChunk];
    alignas(64) int32_t index[kChunk];
    Tables tables(entries, many);
    for (int64_t unit = first; unit < last; ++unit) {
      const int64_t channel = unit / walk.chunks, begin = unit % walk.chunks * kChunk;
      const int64_t n = std::min(kChunk, walk.per_channel - begin);
      bins_of(gather(walk, channel, begin, begin + n, buffer), n, {inverse_width(exponent[channel]), bins}, index);
      int64_t* row = rows + channel * entries;
      if (walk.chunks == 1) {  // nobody else counts in this row
        for (int64_t i = 0; i < n; ++i) ++row[index[i]];
        continue;
      }
      tables.add(index, n);
      if (unit + 1 == last || (unit + 1) / walk.chunks != channel || tables.full()) tables.move_to(row);
    }
  });
}

Tensor histogram(const Tensor& x, const Tensor& exponent, int64_t bins, int64_t axis) {
  check_histogram(x, exponent, bins, axis);
  const Walk walk = make_walk(x, axis, /*by_rows=*/false);
  Tensor rows = new_rows(x, walk.channels, bins, axis);
  const Tensor each = torch::stable::contiguous(exponent);
  count(walk, static_cast<const int64_t*>(each.const_data_ptr()), static_cast<int32_t>(bins),
        static_cast<int64_t*>(rows.mutable_data_ptr()));
  return rows;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CPU, m) { m.impl("histogram", TORCH_BOX(&pq::histogram)); }
