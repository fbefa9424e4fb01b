// quantize (to integer codes) and dequantize on CUDA.
#include <torch/csrc/stable/library.h>

#include "elementwise.cuh"

namespace pq {

namespace {

struct Code {
  static constexpr bool reads_second = false;
  Rounding rounding;
  __device__ int32_t operator()(float x, float, Grid grid, Random random) const {
    return static_cast<int32_t>(code(x, grid, rounding, drawn(rounding, random)));
  }
};

struct Dequantize {
  static constexpr bool reads_second = false;
  __device__ float operator()(float q, float, Grid grid, Random) const { return dequantize(q, grid); }
};

Tensor quantize_op(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                   int64_t axis, int64_t rounding, int64_t seed, int64_t offset, ScalarType dtype) {
  check_grid(x, scale, zero_point, axis);
  Tensor codes = empty_like(x, dtype);
  if (x.numel() == 0) return codes;
  const auto arguments = grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset);
  const Code f{arguments.rounding};
  with_float(x.scalar_type(), [&]<class T>() {
    with_code(dtype, [&]<class Q>() { launch<Code, T, Q>(f, x, nullptr, codes, arguments); });
  });
  return codes;
}

Tensor dequantize_op(const Tensor& codes, const Tensor& scale, const Tensor& zero_point, int64_t axis,
                     ScalarType dtype) {
  check_grid(codes, scale, zero_point, axis);
  STD_TORCH_CHECK(zero_point.scalar_type() == ScalarType::Int, "zero_point must be int32");
  Tensor y = empty_like(codes, dtype);
  if (codes.numel() == 0) return y;
  const auto arguments = grid_arguments(scale, zero_point, 0, 0, axis, 0, 0, 0);
  with_code(codes.scalar_type(), [&]<class Q>() {
    with_float(dtype, [&]<class T>() { launch<Dequantize, Q, T>({}, codes, nullptr, y, arguments); });
  });
  return y;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CUDA, m) {
  m.impl("quantize", TORCH_BOX(&pq::quantize_op));
  m.impl("dequantize", TORCH_BOX(&pq::dequantize_op));
}
