// fake_quantize on CUDA: out of place, in place, into `out`, and its straight-through gradient.
#include <torch/csrc/stable/library.h>

#include "elementwise.cuh"

namespace pq {

namespace {

struct FakeQuantize {
  static constexpr bool needs_gradient = false;
  Rounding rounding;
  __device__ float operator()(float x, float, Grid grid, Random random) const {
    return fake_quantize(x, grid, rounding, random);
  }
};

struct StraightThrough {
  static constexpr bool needs_gradient = true;
  Rounding rounding;
  __device__ float operator()(float x, float g, Grid grid, Random random) const {
    return straight_through(g, x, grid, rounding, random);
  }
};

void forward(const Tensor& x, const GridArguments& arguments, const Tensor& y) {
  check_grid(x, arguments.scale, arguments.zero_point, arguments.axis);
  if (x.numel() == 0) return;
  const FakeQuantize f{arguments.rounding};
  with_float(x.scalar_type(), [&]<class T>() { launch<FakeQuantize, T, T>(f, x, nullptr, y, arguments); });
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
  const StraightThrough f{arguments.rounding};
  with_float(x.scalar_type(), [&]<class T>() { launch<StraightThrough, T, T>(f, x, &grad, dx, arguments); });
  return dx;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CUDA, m) {
  m.impl("fake_quantize", TORCH_BOX(&pq::fake_quantize_op));
  m.impl("fake_quantize_", TORCH_BOX(&pq::fake_quantize_inplace));
  m.impl("fake_quantize_out", TORCH_BOX(&pq::fake_quantize_out));
  m.impl("fake_quantize_backward", TORCH_BOX(&pq::fake_quantize_backward));
}
