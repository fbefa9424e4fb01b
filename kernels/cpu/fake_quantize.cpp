// fake_quantize on the CPU: out of place, in place, into `out`, and its straight-through gradient.
#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "rows.h"

#define PQ_LOOPS "fake_quantize.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

template <Rounding R>
void forward_rows(const Tensor& x, const GridArguments& arguments, const Tensor& y, const Layout& layout) {
  const auto with_one = PQ_PICK(fake_quantize_row<R, OneGrid>);
  const auto with_each = PQ_PICK(fake_quantize_row<R, GridEach>);
  const ChannelGrids grids(arguments, layout);
  const Source source = make_source(x, layout, kInput);
  const Sink sink = make_sink(y, layout);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float buffer[kRow];
    const float* from = source.load(row.position.offset[kInput], row.n, buffer);
    float* to = sink.target(row.position.offset[kOutput], buffer);
    const Randoms counters = randoms(arguments, layout, row);
    grids.vary_in_row() ? with_each(from, to, row.n, grids.each(row), counters)
                        : with_one(from, to, row.n, grids.one(row), counters);
    sink.store(row.position.offset[kOutput], to, row.n);
  });
}

void forward(const Tensor& x, const GridArguments& arguments, const Tensor& y) {
  check_grid(x, arguments.scale, arguments.zero_point, arguments.axis);
  if (x.numel() == 0) return;
  const Layout layout = make_layout(x, nullptr, &y, arguments.axis, arguments.stochastic());
  with_rounding(arguments.rounding, [&]<Rounding R>() { forward_rows<R>(x, arguments, y, layout); });
}

template <Rounding R>
void backward_rows(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx,
                   const Layout& layout) {
  const auto with_one = PQ_PICK(straight_through_row<R, OneGrid>);
  const auto with_each = PQ_PICK(straight_through_row<R, GridEach>);
  const ChannelGrids grids(arguments, layout);
  const Source source = make_source(x, layout, kInput), gradient = make_source(grad, layout, kGradient);
  const Sink sink = make_sink(dx, layout);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float x_buffer[kRow], g_buffer[kRow];
    const float* from = source.load(row.position.offset[kInput], row.n, x_buffer);
    const float* g = gradient.load(row.position.offset[kGradient], row.n, g_buffer);
    float* to = sink.target(row.position.offset[kOutput], x_buffer);
    const Randoms counters = randoms(arguments, layout, row);
    grids.vary_in_row() ? with_each(g, from, to, row.n, grids.each(row), counters)
                        : with_one(g, from, to, row.n, grids.one(row), counters);
    sink.store(row.position.offset[kOutput], to, row.n);
  });
}

Tensor fake_quantize_op(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                        int64_t axis, int64_t rounding, int64_t seed, int64_t offset) {
  Tensor y = torch::stable::empty_like(x);
  forward(x, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), y);
  return y;
}

void fake_quantize_inplace(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                           int64_t axis, int64_t rounding, int64_t seed, int64_t offset) {
  check_output(x, x);
  forward(x, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), x);
}

void fake_quantize_out(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                       int64_t axis, int64_t rounding, int64_t seed, int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  forward(x, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), out);
}

Tensor fake_quantize_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                              int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                              int64_t offset) {
  check_like(x, grad, "grad");
  check_grid(x, scale, zero_point, axis);
  Tensor dx = torch::stable::empty_like(x);
  if (x.numel() == 0) return dx;
  const auto arguments = grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset);
  const Layout layout = make_layout(x, &grad, &dx, axis, arguments.stochastic());
  with_rounding(arguments.rounding, [&]<Rounding R>() { backward_rows<R>(grad, x, arguments, dx, layout); });
  return dx;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CPU, m) {
  m.impl("fake_quantize", TORCH_BOX(&pq::fake_quantize_op));
  m.impl("fake_quantize_", TORCH_BOX(&pq::fake_quantize_inplace));
  m.impl("fake_quantize_out", TORCH_BOX(&pq::fake_quantize_out));
  m.impl("fake_quantize_backward", TORCH_BOX(&pq::fake_quantize_backward));
}
