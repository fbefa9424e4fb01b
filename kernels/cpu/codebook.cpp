// The codebook quantizer on the CPU: the nearest level, its index, and back.
#include "../codebook.h"

#include "../ops.h"
#include "isa.h"
#include "look_up.h"
#include "rows.h"

#define PQ_LOOPS "codebook.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

constexpr int32_t kFewLevels = 64;  // of more, a search is quicker than meeting them all

// Channels innermost: the channel of each element of a row that starts at any of them; empty elsewhere.
std::vector<int32_t> channels_in_row(const Layout& layout, int64_t levels) {
  STD_TORCH_CHECK(layout.period * levels <= INT32_MAX, "levels of innermost channels must be fewer than 2^31");
  std::vector<int32_t> channels(layout.period ? layout.period + std::min(kChannelsRow, layout.numel) : 0);
  for (int64_t i = 0, c = 0; i < std::ssize(channels); ++i, c = c + 1 == layout.period ? 0 : c + 1) {
    channels[i] = static_cast<int32_t>(c);
  }
  return channels;
}

template <bool coded>
void nearest_rows(const Tensor& x, Codebook codebook, const Tensor& y, const Layout& layout) {
  const auto with_one = codebook.count <= kFewLevels ? PQ_PICK(select_row<coded>) : PQ_PICK(search_row<coded>);
  const auto with_each = PQ_PICK(search_channels<coded>);
  const std::vector<int32_t> channels = channels_in_row(layout, codebook.count);
  const Source source = make_source(x, layout, kInput);
  const Sink sink = make_sink(y, layout);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float buffer[kRow];
    const float* from = source.load(row.position.offset[kInput], row.n, buffer);
    float* to = sink.target(row.position.offset[kOutput], buffer);
    if (layout.period) {
      with_each(from, to, row.n, codebook, channels.data() + row.inner % layout.period);
    } else {
      with_one(from, to, row.n, codebook.of(row.position.offset[kChannel]));
    }
    sink.store(row.position.offset[kOutput], to, row.n);
  });
}

}  // namespace

void nearest_level_into(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis, const Tensor& y) {
  const Layout layout = make_layout(x, nullptr, &y, axis, false);
  nearest_rows<false>(x, {entries(levels), entries(highest), levels_of(highest)}, y, layout);
}

void level_index_into(const Tensor& x, const Tensor& highest, int64_t axis, const Tensor& codes) {
  const Layout layout = make_layout(x, nullptr, &codes, axis, false);
  nearest_rows<true>(x, {nullptr, entries(highest), levels_of(highest)}, codes, layout);
}

void level_into(const Tensor& codes, const Tensor& levels, int64_t axis, const Tensor& y) {
  const Codebook codebook{entries(levels), nullptr, static_cast<int32_t>(levels.size(levels.dim() - 1))};
  const Layout layout = make_layout(codes, nullptr, &y, axis, false);
  const Source source = make_source(codes, layout, kInput);
  const Sink sink = make_sink(y, layout);
  const auto with_one = PQ_PICK(levels_row);
  const auto with_each = PQ_PICK(levels_channels);
  const std::vector<int32_t> channels = channels_in_row(layout, codebook.count);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float buffer[kRow];
    const uint8_t* from = reinterpret_cast<const uint8_t*>(source.data) + row.position.offset[kInput];
    float* to = sink.target(row.position.offset[kOutput], buffer);
    if (layout.period) {
      with_each(from, source.stride, to, row.n, codebook, channels.data() + row.inner % layout.period);
    } else {
      with_one(from, source.stride, to, row.n, codebook.of(row.position.offset[kChannel]));
    }
    sink.store(row.position.offset[kOutput], to, row.n);
  });
}

}  // namespace pq
