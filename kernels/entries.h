// The ops as they are registered, the same for every device: what is given is checked, outputs are made, and ops.h's
// functions, which each device has its own of, fill them. Included by cpu/register.cpp and cuda/register.cpp.
#pragma once

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "codebook.h"
#include "ops.h"
#include "pack.h"

namespace pq {

namespace {

void put_on_grid(const Tensor& x, const Tensor* other, bool relu, const GridArguments& arguments, const Tensor& y) {
  check_values(x);
  check_grid(x, arguments.scale, arguments.zero_point, arguments.axis);
  if (other) check_like(x, *other, "other");
  if (x.numel() > 0) fake_quantize_into(x, other, relu, arguments, y);
}

Tensor fake_quantize_op(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                        int64_t axis, int64_t rounding, int64_t seed, int64_t offset) {
  Tensor y = torch::stable::empty_like(x);
  put_on_grid(x, nullptr, false, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), y);
  return y;
}

void fake_quantize_inplace(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                           int64_t axis, int64_t rounding, int64_t seed, int64_t offset) {
  check_output(x, x);
  put_on_grid(x, nullptr, false, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), x);
}

void fake_quantize_out(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                       int64_t axis, int64_t rounding, int64_t seed, int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  put_on_grid(x, nullptr, false, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), out);
}

Tensor fused_fake_quantize(const Tensor& x, std::optional<Tensor> other, bool relu, const Tensor& scale,
                           const Tensor& zero_point, int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding,
                           int64_t seed, int64_t offset) {
  Tensor y = torch::stable::empty_like(x);
  put_on_grid(x, other ? &*other : nullptr, relu,
              grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), y);
  return y;
}

void fused_fake_quantize_out(const Tensor& x, std::optional<Tensor> other, bool relu, const Tensor& scale,
                             const Tensor& zero_point, int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding,
                             int64_t seed, int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  if (other) check_output(*other, out);
  put_on_grid(x, other ? &*other : nullptr, relu,
              grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), out);
}

void straight_through(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx) {
  check_like(x, grad, "grad");
  check_values(x);
  check_grid(x, arguments.scale, arguments.zero_point, arguments.axis);
  if (x.numel() > 0) straight_through_into(grad, x, arguments, dx);
}

Tensor fake_quantize_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                              int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                              int64_t offset) {
  Tensor dx = torch::stable::empty_like(x);
  straight_through(grad, x, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), dx);
  return dx;
}

void fake_quantize_backward_out(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                                int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                                int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  check_output(grad, out);
  straight_through(grad, x, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), out);
}

void learned_gradients(const Tensor& grad, const Tensor& x, const GridArguments& arguments, double grad_scale,
                       const Tensor& dx, const Tensor& ds, const Tensor& dz) {
  check_like(x, grad, "grad");
  check_values(x);
  check_grid(x, arguments.scale, arguments.zero_point, arguments.axis);
  check_learned(arguments.scale, arguments.zero_point, dx, ds, dz);
  learned_gradients_into(grad, x, arguments, grad_scale, dx, ds, dz);
}

std::tuple<Tensor, Tensor, Tensor> learnable_backward(const Tensor& grad, const Tensor& x, const Tensor& scale,
                                                      const Tensor& zero_point, int64_t qmin, int64_t qmax,
                                                      int64_t axis, double grad_scale) {
  Tensor dx = torch::stable::empty_like(x);
  Tensor ds = torch::stable::new_empty(scale, scale.sizes()), dz = torch::stable::new_empty(scale, scale.sizes());
  learned_gradients(grad, x, grid_arguments(scale, zero_point, qmin, qmax, axis, 0, 0, 0), grad_scale, dx, ds, dz);
  return {dx, ds, dz};
}

void learnable_backward_out(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                            int64_t qmin, int64_t qmax, int64_t axis, double grad_scale, const Tensor& dx,
                            const Tensor& ds, const Tensor& dz) {
  check_like(x, dx, "dx");
  check_unread(x, dx);
  check_unread(grad, dx);
  learned_gradients(grad, x, grid_arguments(scale, zero_point, qmin, qmax, axis, 0, 0, 0), grad_scale, dx, ds, dz);
}

std::tuple<Tensor, Tensor> online_fake_quantize_out(const Tensor& x, bool relu, int64_t spread, double reach,
                                                    int64_t support, double ceiling, bool symmetric, int64_t qmin,
                                                    int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                                                    int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  check_values(x);
  check_axis(x, axis);
  const RangeRule rule = range_rule(spread, reach, support, ceiling, symmetric, qmin);
  const auto [scale, zero_point] = online_grid_of(x, rule, qmin, qmax, axis);
  put_on_grid(x, nullptr, relu, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), out);
  return {scale, zero_point};
}

std::tuple<Tensor, Tensor, Tensor> online_fake_quantize(const Tensor& x, bool relu, int64_t spread, double reach,
                                                        int64_t support, double ceiling, bool symmetric, int64_t qmin,
                                                        int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                                                        int64_t offset) {
  Tensor y = torch::stable::empty_like(x);
  const auto [scale, zero_point] = online_fake_quantize_out(x, relu, spread, reach, support, ceiling, symmetric, qmin,
                                                            qmax, axis, rounding, seed, offset, y);
  return {y, scale, zero_point};
}

Tensor quantize_op(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                   int64_t axis, int64_t rounding, int64_t seed, int64_t offset, ScalarType dtype) {
  check_values(x);
  check_codes(dtype);
  check_grid(x, scale, zero_point, axis);
  Tensor codes = empty_like(x, dtype);
  const auto arguments = grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset);
  if (x.numel() > 0) quantize_into(x, arguments, codes);
  return codes;
}

Tensor dequantize_op(const Tensor& codes, const Tensor& scale, const Tensor& zero_point, int64_t axis,
                     ScalarType dtype) {
  check_codes(codes.scalar_type());
  check_grid(codes, scale, zero_point, axis);
  STD_TORCH_CHECK(zero_point.scalar_type() == ScalarType::Int, "zero_point must be int32");
  Tensor y = empty_like(codes, dtype);
  if (codes.numel() > 0) dequantize_into(codes, grid_arguments(scale, zero_point, 0, 0, axis, 0, 0, 0), y);
  return y;
}

Tensor tensor_statistics(const Tensor& x, int64_t axis) {
  check_values(x);
  check_axis(x, axis);
  return statistics_of(x, axis);
}

Tensor histogram(const Tensor& x, const Tensor& exponent, int64_t bins, int64_t axis) {
  check_values(x);
  check_histogram(x, exponent, bins, axis);
  Tensor rows = new_rows(x, axis < 0 ? 1 : x.size(axis), bins, axis);
  if (x.numel() > 0) count_into(x, axis, torch::stable::contiguous(exponent), nullptr, bins, rows);
  return rows;
}

// Counts so far on wider bins, and x added to them.
std::tuple<Tensor, Tensor> growing_histogram(const Tensor& x, const Tensor& largest, const Tensor& counts,
                                             const Tensor& exponent, int64_t axis) {
  check_values(x);
  check_growing(x, largest, counts, exponent, axis);
  const int64_t channels = axis < 0 ? 1 : x.size(axis), bins = counts.size(counts.dim() - 1) - kBesideBins;
  const Tensor most = torch::stable::contiguous(largest), narrow = torch::stable::contiguous(exponent);
  Tensor rows = new_rows(x, channels, bins, axis), wide = torch::stable::empty_like(narrow);
  if (channels > 0) widen_into(torch::stable::contiguous(counts), narrow, most, bins, wide, rows);
  if (x.numel() > 0) count_into(x, axis, wide, &most, bins, rows);
  return {rows, wide};
}

void nearest_level(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis, const Tensor& y) {
  check_codebook(x, levels, highest, axis);
  if (x.numel() == 0) return;
  nearest_level_into(x, torch::stable::contiguous(levels), torch::stable::contiguous(highest), axis, y);
}

Tensor codebook_fake_quantize(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis) {
  Tensor y = torch::stable::empty_like(x);
  nearest_level(x, levels, highest, axis, y);
  return y;
}

void codebook_fake_quantize_out(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis,
                                const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  nearest_level(x, levels, highest, axis, out);
}

Tensor codebook_quantize(const Tensor& x, const Tensor& highest, int64_t axis) {
  check_highest(x, highest, axis);
  Tensor codes = empty_like(x, ScalarType::Byte);
  if (x.numel() > 0) level_index_into(x, torch::stable::contiguous(highest), axis, codes);
  return codes;
}

Tensor codebook_dequantize(const Tensor& codes, const Tensor& levels, int64_t axis, ScalarType dtype) {
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Byte, "codes must be uint8");
  check_levels(codes, levels, axis);
  Tensor y = empty_like(codes, dtype);
  if (codes.numel() > 0) level_into(codes, torch::stable::contiguous(levels), axis, y);
  return y;
}

Tensor pack_op(const Tensor& codes, int64_t bits) {
  check_packing(codes.scalar_type(), bits);
  Tensor packed = new_flat(codes, packed_bytes(codes.numel(), bits), ScalarType::Byte);
  if (codes.numel() > 0) pack_into(torch::stable::contiguous(codes), bits, packed);
  return packed;
}

void pack_out_op(const Tensor& codes, int64_t bits, const Tensor& out) {
  check_packing(codes.scalar_type(), bits);
  check_packed(out, codes.numel(), bits);
  STD_TORCH_CHECK(out.numel() == packed_bytes(codes.numel(), bits), "out must have as many bytes as the codes take");
  const Tensor flat = torch::stable::contiguous(codes);
  check_apart(flat, out);
  if (codes.numel() > 0) pack_into(flat, bits, out);
}

Tensor unpack_op(const Tensor& packed, int64_t bits, int64_t numel, bool is_signed, ScalarType dtype) {
  check_packing(dtype, bits);
  check_packed(packed, numel, bits);
  Tensor codes = new_flat(packed, numel, dtype);
  if (numel > 0) unpack_into(torch::stable::contiguous(packed), bits, is_signed, codes);
  return codes;
}

void unpack_out_op(const Tensor& packed, int64_t bits, bool is_signed, const Tensor& out) {
  check_packing(out.scalar_type(), bits);
  check_packed(packed, out.numel(), bits);
  const Tensor flat = torch::stable::contiguous(packed);
  check_apart(flat, out);
  if (out.numel() > 0) unpack_into(flat, bits, is_signed, out);
}

template <class Library>
void register_ops(Library& m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize_op));
  m.impl("fake_quantize_", TORCH_BOX(&fake_quantize_inplace));
  m.impl("fake_quantize_out", TORCH_BOX(&fake_quantize_out));
  m.impl("fused_fake_quantize", TORCH_BOX(&fused_fake_quantize));
  m.impl("fused_fake_quantize_out", TORCH_BOX(&fused_fake_quantize_out));
  m.impl("fake_quantize_backward", TORCH_BOX(&fake_quantize_backward));
  m.impl("fake_quantize_backward_out", TORCH_BOX(&fake_quantize_backward_out));
  m.impl("learnable_fake_quantize_backward", TORCH_BOX(&learnable_backward));
  m.impl("learnable_fake_quantize_backward_out", TORCH_BOX(&learnable_backward_out));
  m.impl("online_fake_quantize", TORCH_BOX(&online_fake_quantize));
  m.impl("online_fake_quantize_out", TORCH_BOX(&online_fake_quantize_out));
  m.impl("quantize", TORCH_BOX(&quantize_op));
  m.impl("dequantize", TORCH_BOX(&dequantize_op));
  m.impl("tensor_statistics", TORCH_BOX(&tensor_statistics));
  m.impl("histogram", TORCH_BOX(&histogram));
  m.impl("growing_histogram", TORCH_BOX(&growing_histogram));
  m.impl("codebook_fake_quantize", TORCH_BOX(&codebook_fake_quantize));
  m.impl("codebook_fake_quantize_out", TORCH_BOX(&codebook_fake_quantize_out));
  m.impl("codebook_quantize", TORCH_BOX(&codebook_quantize));
  m.impl("codebook_dequantize", TORCH_BOX(&codebook_dequantize));
  m.impl("pack", TORCH_BOX(&pack_op));
  m.impl("pack_out", TORCH_BOX(&pack_out_op));
  m.impl("unpack", TORCH_BOX(&unpack_op));
  m.impl("unpack_out", TORCH_BOX(&unpack_out_op));
}

}  // namespace

}  // namespace pq
