// quantize (to integer codes) and dequantize on the CPU.

#include "../ops.h"
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

}  // namespace

void quantize_into(const Tensor& x, const GridArguments& arguments, const Tensor& codes) {
  const Layout layout = make_layout(x, nullptr, &codes, arguments.axis, arguments.stochastic());
  with_rounding(arguments.rounding, [&]<Rounding R>() { quantize_rows<R>(x, arguments, codes, layout); });
}

void dequantize_into(const Tensor& codes, const GridArguments& arguments, const Tensor& y) {
  const Layout layout = make_layout(codes, nullptr, &y, arguments.axis, false);
  const ChannelGrids grids(arguments, layout);
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
}

}  // namespace pq
