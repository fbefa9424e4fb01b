// fake_quantize on the CPU: out of place, in place, into `out`, with an addition and a ReLU before it in the same pass,
// and its straight-through gradient.

#include "../ops.h"
#include "convert.h"
#include "isa.h"
#include "rows.h"

#define PQ_LOOPS "fake_quantize.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

// A half type's sum is rounded before it goes on, so it is added apart; float32's is added in the loop itself.
template <Before B, Rounding R>
void forward_rows(const Tensor& x, const Tensor* other, const GridArguments& arguments, const Tensor& y,
                  const Layout& layout) {
  constexpr Before kAdded{false, B.relu};
  const HalfRounding rounded(x.scalar_type());
  const bool apart = B.adds && rounded.store;
  const auto with_one =
      apart ? PQ_PICK(fake_quantize_row<kAdded, R, OneGrid>) : PQ_PICK(fake_quantize_row<B, R, OneGrid>);
  const auto with_each =
      apart ? PQ_PICK(fake_quantize_row<kAdded, R, GridEach>) : PQ_PICK(fake_quantize_row<B, R, GridEach>);
  const auto add = PQ_PICK(add_row);
  const ChannelGrids grids(arguments, layout);
  const Source source = make_source(x, layout, kInput), addend = make_source(B.adds ? *other : x, layout, kGradient);
  const Sink sink = make_sink(y, layout);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float buffer[kRow], other_buffer[B.adds ? kRow : 1], numbers[kDrawn<R>];
    const float* from = source.load(row.position.offset[kInput], row.n, buffer);
    const float* added = B.adds ? addend.load(row.position.offset[kGradient], row.n, other_buffer) : nullptr;
    if (apart) {
      add(from, added, buffer, row.n);
      rounded(buffer, row.n);
      from = buffer;
    }
    float* to = sink.target(row.position.offset[kOutput], buffer);
    const float* u = draw(arguments, layout, row, numbers);
    grids.vary_in_row() ? with_each(from, added, to, row.n, grids.each(row), u)
                        : with_one(from, added, to, row.n, grids.one(row), u);
    sink.store(row.position.offset[kOutput], to, row.n);
  });
}

// Grids of channels that lie innermost, those at even places apart from those at odd ones.
class PairedGrids {
 public:
  explicit PairedGrids(const ChannelGrids& grids) : grids_(grids) {
    const int64_t entries = grids.vary_in_row() ? grids.entries() : 0;
    for (const int64_t odd : {0, 1}) {
      scale_[odd].resize((entries + 1 - odd) / 2);
      zero_point_[odd].resize(scale_[odd].size());
    }
    for (int64_t i = 0; i < entries; ++i) {
      const Grid grid = grids.from(0).at(i);
      scale_[i % 2][i / 2] = grid.scale;
      zero_point_[i % 2][i / 2] = grid.zero_point;
    }
  }

  GridOfPair each(const Row& row) const {
    const int64_t first = grids_.first(row), odd = first % 2;  // an odd start: what was at even places comes second
    const Grid any = grids_.from(0).at(0);
    GridOfPair of;
    for (const int64_t place : {0, 1}) {
      const int64_t from = (first + place) / 2, parity = (odd + place) % 2;
      of.scale[place] = scale_[parity].data() + from, of.zero_point[place] = zero_point_[parity].data() + from;
    }
    of.qmin = any.qmin, of.qmax = any.qmax;
    return of;
  }

 private:
  const ChannelGrids& grids_;
  std::vector<float> scale_[2], zero_point_[2];
};

// Half types where both lie in sequence: loop(from, to, n, grids) for each row, each(row) the grids of one in which
// they vary. Everything else of a half type goes through rows of float32.
template <class OneLoop, class EachLoop, class Each>
void halves(const Tensor& x, const Tensor& y, const Layout& layout, const ChannelGrids& grids, OneLoop with_one,
            EachLoop with_each, const Each& each) {
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(y.mutable_data_ptr());
  for_each_row(layout, [&](const Row& row) {
    const char* x_row = from + row.position.offset[kInput] * sizeof(HalfBits);
    char* y_row = to + row.position.offset[kOutput] * sizeof(HalfBits);
    grids.vary_in_row() ? with_each(x_row, y_row, row.n, each(row)) : with_one(x_row, y_row, row.n, grids.one(row));
  });
}

template <bool relu>
void forward_halves(const Tensor& x, const GridArguments& arguments, const Tensor& y, const Layout& layout) {
  const ChannelGrids grids(arguments, layout);
  if (x.scalar_type() == ScalarType::Half) {
    halves(x, y, layout, grids, PQ_PICK(fake_quantize_float16<relu, OneGrid>),
           PQ_PICK(fake_quantize_float16<relu, GridEach>), [&](const Row& row) { return grids.each(row); });
  } else {
    const PairedGrids paired(grids);
    halves(x, y, layout, grids, PQ_PICK(fake_quantize_bfloat16<relu, OneGrid>),
           PQ_PICK(fake_quantize_bfloat16<relu, GridOfPair>), [&](const Row& row) { return paired.each(row); });
  }
}

bool in_sequence(const Layout& layout) {
  return !layout.dims || (layout.stride[kInput][layout.dims - 1] == 1 && layout.stride[kOutput][layout.dims - 1] == 1);
}

template <Before B, Rounding R>
void forward_any(const Tensor& x, const Tensor* other, const GridArguments& arguments, const Tensor& y,
                 const Layout& layout) {
  if constexpr (!B.adds && R == Rounding::half_even) {
    const bool half = x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16;
    if (half && in_sequence(layout)) {
      return forward_halves<B.relu>(x, arguments, y, layout);
    }
  }
  forward_rows<B, R>(x, other, arguments, y, layout);
}

}  // namespace

void fake_quantize_into(const Tensor& x, const Tensor* other, bool relu, const GridArguments& arguments,
                        const Tensor& y) {
  const Layout layout = make_layout(x, other, &y, arguments.axis, arguments.stochastic());
  with_before({other != nullptr, relu}, [&]<Before B>() {
    with_rounding(arguments.rounding, [&]<Rounding R>() { forward_any<B, R>(x, other, arguments, y, layout); });
  });
}

namespace {

template <Rounding R>
void backward_rows(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx,
                   const Layout& layout) {
  const auto with_one = PQ_PICK(straight_through_row<R, OneGrid>);
  const auto with_each = PQ_PICK(straight_through_row<R, GridEach>);
  const ChannelGrids grids(arguments, layout);
  const Source source = make_source(x, layout, kInput), gradient = make_source(grad, layout, kGradient);
  const Sink sink = make_sink(dx, layout);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float x_buffer[kRow], g_buffer[kRow], numbers[kDrawn<R>];
    const float* from = source.load(row.position.offset[kInput], row.n, x_buffer);
    const float* g = gradient.load(row.position.offset[kGradient], row.n, g_buffer);
    float* to = sink.target(row.position.offset[kOutput], x_buffer);
    const float* u = draw(arguments, layout, row, numbers);
    grids.vary_in_row() ? with_each(g, from, to, row.n, grids.each(row), u)
                        : with_one(g, from, to, row.n, grids.one(row), u);
    sink.store(row.position.offset[kOutput], to, row.n);
  });
}

}  // namespace

void straight_through_into(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx) {
  const Layout layout = make_layout(x, &grad, &dx, arguments.axis, arguments.stochastic());
  with_rounding(arguments.rounding, [&]<Rounding R>() { backward_rows<R>(grad, x, arguments, dx, layout); });
}

}  // namespace pq
