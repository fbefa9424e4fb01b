// The CPU driver of elementwise ops: cuts a loop nest into rows, brings a row into float32 and takes it back.
// What happens to a row in between is a loop of the op's own file.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "../arguments.h"
#include "../layout.h"

namespace pq {

constexpr int64_t kRow = 2048;          // elements: two float32 rows fit in a first-level cache
constexpr int64_t kChannelsRow = 512;   // the same where channels are innermost: their grids are read with every row
constexpr int64_t kRowsPerThread = 16;  // less work than this isn't worth a second thread

// A row: `n` elements from `position` on, the `inner`-th and following of the innermost dimension.
struct Row {
  Position position;
  int64_t inner, n;
};

template <class Body>
void walk_rows(const Layout& layout, int64_t begin, int64_t end, const Body& body, int64_t longest = kRow) {
  const int last = layout.dims - 1;
  while (begin < end) {
    Row row;
    row.position = locate(layout, begin, row.inner);
    const int64_t size = layout.dims ? layout.size[last] : 1;
    row.n = std::min({size - row.inner, end - begin, longest});
    body(row);
    begin += row.n;
  }
}

// body(row) for all rows of the nest, over torch's threads. Rows are independent: their order is no promise.
template <class Body>
void for_each_row(const Layout& layout, const Body& body) {
  const int64_t rows = (layout.numel + kRow - 1) / kRow;
  const int64_t longest = layout.period ? kChannelsRow : kRow;
  torch::stable::parallel_for(0, rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    walk_rows(layout, begin * kRow, std::min(end * kRow, layout.numel), body, longest);
  });
}

// How a row of some dtype and stride comes into float32: `load` returns where it is, which may be `buffer`.
struct Source {
  using Convert = void (*)(const char* from, int64_t stride, float* to, int64_t n);
  const char* data;
  int64_t stride, bytes;
  Convert convert;  // null: float32 in sequence, read where it lies

  const float* load(int64_t offset, int64_t n, float* buffer) const {
    const char* from = data + offset * bytes;
    if (!convert) return reinterpret_cast<const float*>(from);
    convert(from, stride, buffer, n);
    return buffer;
  }
};

// How a float32 row gets to where it belongs. `target` is what the op writes to; `store` then takes it there.
struct Sink {
  using Convert = void (*)(const float* from, char* to, int64_t stride, int64_t n);
  char* data;
  int64_t stride, bytes;
  Convert convert;  // null: float32 in sequence, written in place

  float* target(int64_t offset, float* buffer) const {
    return convert ? buffer : reinterpret_cast<float*>(data + offset * bytes);
  }
  void store(int64_t offset, const float* from, int64_t n) const {
    if (convert) convert(from, data + offset * bytes, stride, n);
  }
};

// To a half type and back, in place: what an operation of its own would have left of a float32 row.
struct HalfRounding {
  Sink::Convert store;  // null: float32, nothing to do
  Source::Convert load;

  explicit HalfRounding(ScalarType dtype);
  void operator()(float* row, int64_t n) const {
    if (!store) return;
    alignas(64) char halves[kRow * 2];
    store(row, halves, 1, n);
    load(halves, 1, row, n);
  }
};

Source make_source(const Tensor& x, const Layout& layout, Track track);
Sink make_sink(const Tensor& y, const Layout& layout);

// What a loop asks for its i-th element: the grid, one for the row or one an element.
struct OneGrid {
  Grid grid;
  PQ_INLINE Grid at(int64_t) const { return grid; }
  PQ_INLINE Grid of_pair(int64_t, int64_t) const { return grid; }
};
struct GridEach {
  const float *scale, *zero_point;
  float qmin, qmax;
  PQ_INLINE Grid at(int64_t i) const { return {scale[i], zero_point[i], qmin, qmax}; }
};
// The same for a loop that takes elements in pairs: of each pair the one at an even place, or the one at an odd one.
struct GridOfPair {
  const float *scale[2], *zero_point[2];
  float qmin, qmax;
  PQ_INLINE Grid of_pair(int64_t pair, int64_t odd) const {
    return {scale[odd][pair], zero_point[odd][pair], qmin, qmax};
  }
  PQ_INLINE Grid at(int64_t i) const { return of_pair(i / 2, i % 2); }
};

// Scales and zero points as the loops read them: checked, float32, and repeated where channels are innermost so that
// a row may start at any of them.
class ChannelGrids {
 public:
  ChannelGrids(const GridArguments& arguments, const Layout& layout);

  bool vary_in_row() const { return period_ > 0; }
  int64_t entries() const { return static_cast<int64_t>(scale_.size()); }
  int64_t first(const Row& row) const { return row.inner % period_; }
  OneGrid of(int64_t channel) const { return {{scale_[channel], zero_point_[channel], qmin_, qmax_}}; }
  GridEach from(int64_t channel) const { return {scale_.data() + channel, zero_point_.data() + channel, qmin_, qmax_}; }
  OneGrid one(const Row& row) const { return of(row.position.offset[kChannel]); }
  GridEach each(const Row& row) const { return from(first(row)); }

 private:
  std::vector<float> scale_, zero_point_;
  float qmin_, qmax_;
  int64_t period_;
};

// Room for a row's random numbers, where any are drawn.
template <Rounding R>
constexpr int64_t kDrawn = R == Rounding::stochastic ? kRow : 1;

// The random numbers of a row, in `buffer`; null where none are drawn.
const float* draw(const GridArguments& arguments, const Layout& layout, const Row& row, float* buffer);

}  // namespace pq
