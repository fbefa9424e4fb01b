// quantize (to integer codes) and dequantize on the CPU.
#include <torch/csrc/stable/library.h>

#include "isa.h"
#include "rows.h"

#define PQ_LOOPS "quantize.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

template <Rounding R>
void quantize_rows(const Tensor& x, const GridArguments& arguments, const Tensor& codes, const Layout& layout) {
  const auto with_one = PQ_PICK(quantize_row<R, OneGrid>);
  const auto with_each = PQ_PICK(quantize_row<R, GridEach>);
  const ChannelGrids grids(arguments, layout);
  const Source source = make_source(x, layout, kInput);
  const Sink sink = make_sink(codes, layout);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float buffer[kRow], numbers[kDrawn<R>];
    const float* from = source.load(row.position.offset[kInput], row.n, buffer);
    const float* u = draw(arguments, layout, row, numbers);
    grids.vary_in_row() ? with_each(from, buffer, row.n, grids.each(row), u)
                        : with_one(from, buffer, row.n, grids.one(row), u);
    sink.store(row.position.offset[kOutput], buffer, row.n);
  });
}

void check_codes(ScalarType dtype) {
  const bool integer =
      dtype == ScalarType::Byte || dtype == ScalarType::Char || dtype == ScalarType::Short || dtype == ScalarType::Int;
  STD_TORCH_CHECK(integer, "codes must be int8, uint8, int16 or int32");
}

Tensor quantize_op(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                   int64_t axis, int64_t rounding, int64_t seed, int64_t offset, ScalarType dtype) {
  check_codes(dtype);
  check_grid(x, scale, zero_point, axis);
  Tensor codes = empty_like(x, dtype);
  if (x.numel() == 0) return codes;
  const auto arguments = grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset);
  const Layout layout = make_layout(x, nullptr, &codes, axis, arguments.stochastic());
  with_rounding(arguments.rounding, [&]<Rounding R>() { quantize_rows<R>(x, arguments, codes, layout); });
  return codes;
}

Tensor dequantize_op(const Tensor& codes, const Tensor& scale, const Tensor& zero_point, int64_t axis,
                     ScalarType dtype) {
  check_codes(codes.scalar_type());
  check_grid(codes, scale, zero_point, axis);
  STD_TORCH_CHECK(zero_point.scalar_type() == ScalarType::Int, "zero_point must be int32");
  Tensor y = empty_like(codes, dtype);
  if (codes.numel() == 0) return y;
  const Layout layout = make_layout(codes, nullptr, &y, axis, false);
  const ChannelGrids grids(grid_arguments(scale, zero_point, 0, 0, axis, 0, 0, 0), layout);
  const auto with_one = PQ_PICK(dequantize_row<OneGrid>);
  const auto with_each = PQ_PICK(dequantize_row<GridEach>);
  const Source source = make_source(codes, layout, kInput);
  const Sink sink = make_sink(y, layout);
  for_each_row(layout, [&](const Row& row) {
    alignas(64) float buffer[kRow];
    const float* from = source.load(row.position.offset[kInput], row.n, buffer);
    float* to = sink.target(row.position.offset[kOutput], buffer);
    grids.vary_in_row() ? with_each(from, to, row.n, grids.each(row)) : with_one(from, to, row.n, grids.one(row));
    sink.store(row.position.offset[kOutput], to, row.n);
  });
  return y;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CPU, m) {
  m.impl("quantize", TORCH_BOX(&pq::quantize_op));
  m.impl("dequantize", TORCH_BOX(&pq::dequantize_op));
}
