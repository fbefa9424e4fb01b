// histogram on the CPU. A thread counts in tables of its own and adds them to the result when it leaves a channel:
// whole numbers, so that the order of threads changes nothing.
#include "../histogram.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <utility>

#include "../ops.h"
#include "isa.h"
#include "walk.h"

#define PQ_LOOPS "histogram.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

constexpr int kTables = 4;            // neighbours that are alike count in different places: none waits for the other
constexpr int32_t kSmallBins = 4096;  // of these, four tables fit in a first-level cache

// Each channel's bins. largest: null, or the largest |x|; a channel where it isn't finite counts nothing.
struct Widths {
  const int64_t* exponent;
  const float* largest;
  int32_t bins;

  bool counts(int64_t channel) const { return !largest || is_finite(largest[channel]); }
};

// Counts of one channel on the way. Place and Count are as narrow as they may be, so that tables stay in the cache.
template <class Count, int tables>
class Tables {
 public:
  explicit Tables(int32_t bins)
      : bins_(bins), places_(bins + kBesidePlaces), counts_(tables * places_), sums_(places_) {}

  void add(const float* x, int64_t n, float inverse) {
    const int64_t most = n / tables + kRegisters;  // in one table, if all are alike
    if (since_ + most > std::numeric_limits<Count>::max()) empty();
    count_(x, n, {inverse, bins_}, counts_.data());
    since_ += most;
  }

  // Adds everything to a row of the result; `alone` if no other thread does.
  void move_to(int64_t* row, bool alone) {
    empty();
    for (int32_t place = 0; place < places_; ++place) {
      const int64_t count = std::exchange(sums_[place], 0);
      int64_t& entry = row[entry_of(place, bins_)];
      if (alone) {
        entry += count;
      } else if (count) {
        std::atomic_ref<int64_t>(entry).fetch_add(count, std::memory_order_relaxed);
      }
    }
  }

 private:
  void empty() {
    for (int t = 0; t < tables; ++t) {
      for (int32_t place = 0; place < places_; ++place) sums_[place] += counts_[t * places_ + place];
    }
    std::fill(counts_.begin(), counts_.end(), Count{0});
    since_ = 0;
  }

  static constexpr int64_t kRegisters = 16;  // what fills no register goes into the first table

  int32_t bins_, places_;
  int64_t since_ = 0;
  decltype(&baseline::count_values<Count, tables>) count_ = PQ_PICK(count_values<Count, tables>);
  std::vector<Count> counts_;
  std::vector<int64_t> sums_;
};

// Channels of so few elements that tables would cost more than they save: a chunk counts in its row at once.
void count_small(const Walk& walk, const Widths& widths, int64_t* rows) {
  const int32_t bins = widths.bins;
  torch::stable::parallel_for(0, walk.channels, chunk_grain(walk), [&](int64_t first, int64_t last) {
    alignas(64) float buffer[kChunk];
    for (int64_t channel = first; channel < last; ++channel) {
      if (!widths.counts(channel)) continue;
      const Bins own{inverse_width(widths.exponent[channel]), bins};
      int64_t* row = rows + channel * (bins + kBesideBins);
      for (int64_t chunk = 0; chunk < walk.chunks; ++chunk) {
        const int64_t begin = walk.begin(chunk), n = walk.end(chunk) - begin;
        const float* x = gather(walk, channel, begin, begin + n, buffer);
        for (int64_t i = 0; i < n; ++i) ++row[entry_of(place_of<float, int32_t>(x[i], own), bins)];
      }
    }
  });
}

template <class Count, int tables>
void count_tables(const Walk& walk, const Widths& widths, int64_t* rows) {
  torch::stable::parallel_for(0, walk.channels * walk.chunks, chunk_grain(walk), [&](int64_t first, int64_t last) {
    alignas(64) float buffer[kChunk];
    Tables<Count, tables> counts(widths.bins);
    for (int64_t task = first; task < last; ++task) {
      const int64_t channel = task / walk.chunks, chunk = task % walk.chunks;
      const int64_t begin = walk.begin(chunk), end = walk.end(chunk);
      if (widths.counts(channel)) {
        counts.add(gather(walk, channel, begin, end, buffer), end - begin, inverse_width(widths.exponent[channel]));
      }
      if (task + 1 < last && chunk + 1 < walk.chunks) continue;
      const bool alone = channel * walk.chunks >= first && (channel + 1) * walk.chunks <= last;
      counts.move_to(rows + channel * (widths.bins + kBesideBins), alone);
    }
  });
}

void count(const Walk& walk, const Widths& widths, int64_t* rows) {
  const int32_t bins = widths.bins;
  if (walk.per_channel < bins / 2) return count_small(walk, widths, rows);
  if (walk.per_channel >= 4 * bins && bins <= kSmallBins) return count_tables<uint16_t, kTables>(walk, widths, rows);
  count_tables<uint32_t, 1>(walk, widths, rows);
}

const int64_t* integers(const Tensor& x) { return static_cast<const int64_t*>(x.const_data_ptr()); }

}  // namespace

void count_into(const Tensor& x, int64_t axis, const Tensor& exponent, const Tensor* largest, int64_t bins,
                const Tensor& rows) {
  const Walk walk = make_walk(x, axis, /*by_rows=*/false);
  const float* top = largest ? static_cast<const float*>(largest->const_data_ptr()) : nullptr;
  count(walk, {integers(exponent), top, static_cast<int32_t>(bins)}, static_cast<int64_t*>(rows.mutable_data_ptr()));
}

void widen_into(const Tensor& before, const Tensor& narrow, const Tensor& largest, int64_t bins, const Tensor& wide,
                const Tensor& rows) {
  const int64_t entries = bins + kBesideBins;
  const float* top = static_cast<const float*>(largest.const_data_ptr());
  int64_t* row = static_cast<int64_t*>(rows.mutable_data_ptr());
  int64_t* width = static_cast<int64_t*>(wide.mutable_data_ptr());
  for (int64_t c = 0; c < narrow.numel(); ++c) {
    width[c] = grown(integers(narrow)[c], top[c], static_cast<int32_t>(bins));
    const int64_t shift = width[c] - integers(narrow)[c], *from = integers(before) + c * entries;
    for (int32_t i = 0; i < entries; ++i) {
      row[c * entries + coarser(i, shift, static_cast<int32_t>(bins))] += from[i];
    }
  }
}

}  // namespace pq
