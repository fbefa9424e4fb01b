// fake_quantize on CUDA: out of place, in place, into `out`, with an addition and a ReLU before it in the same pass,
// and its straight-through gradient.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../ops.h"
#include "elementwise.cuh"

namespace pq {

namespace {

template <Rounding R>
struct FakeQuantize {
  static constexpr bool reads_second = false;
  __device__ float operator()(float x, float, Grid grid, Random random) const {
    return fake_quantize(x, grid, R, drawn(R, random));
  }
};

// T: the tensors' type, to which the sum is rounded.
template <class T, bool adds>
struct FusedFakeQuantize {
  static constexpr bool reads_second = adds;
  Rounding rounding;
  bool relu;
  __device__ float operator()(float x, float other, Grid grid, Random random) const {
    const float sum = adds ? static_cast<float>(static_cast<T>(x + other)) : x;
    return fake_quantize(relu ? rectify(sum) : sum, grid, rounding, drawn(rounding, random));
  }
};

template <Rounding R>
struct StraightThrough {
  static constexpr bool reads_second = true;
  __device__ float operator()(float x, float g, Grid grid, Random random) const {
    return straight_through(g, x, grid, R, drawn(R, random));
  }
};

}  // namespace

void fake_quantize_into(const Tensor& x, const Tensor* other, bool relu, const GridArguments& arguments,
                        const Tensor& y) {
  check_grid(x, arguments.scale, arguments.zero_point, arguments.axis);
  if (other) check_like(x, *other, "other");
  if (x.numel() == 0) return;
  with_float(x.scalar_type(), [&]<class T>() {
    if (other) {
      launch<FusedFakeQuantize<T, true>, T, T>({arguments.rounding, relu}, x, other, y, arguments);
    } else if (relu) {
      launch<FusedFakeQuantize<T, false>, T, T>({arguments.rounding, true}, x, nullptr, y, arguments);
    } else {
      with_rounding(arguments.rounding,
                    [&]<Rounding R>() { launch<FakeQuantize<R>, T, T>({}, x, nullptr, y, arguments); });
    }
  });
}

namespace {

Tensor fake_quantize_op(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                        int64_t axis, int64_t rounding, int64_t seed, int64_t offset) {
  Tensor y = torch::stable::empty_like(x);
  fake_quantize_into(x, nullptr, false, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), y);
  return y;
}

void fake_quantize_inplace(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                           int64_t axis, int64_t rounding, int64_t seed, int64_t offset) {
  check_output(x, x);
  fake_quantize_into(x, nullptr, false, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), x);
}

void fake_quantize_out(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                       int64_t axis, int64_t rounding, int64_t seed, int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  fake_quantize_into(x, nullptr, false, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset),
                     out);
}

Tensor fused_fake_quantize(const Tensor& x, std::optional<Tensor> other, bool relu, const Tensor& scale,
                           const Tensor& zero_point, int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding,
                           int64_t seed, int64_t offset) {
  Tensor y = torch::stable::empty_like(x);
  fake_quantize_into(x, other ? &*other : nullptr, relu,
                     grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), y);
  return y;
}

void fused_fake_quantize_out(const Tensor& x, std::optional<Tensor> other, bool relu, const Tensor& scale,
                             const Tensor& zero_point, int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding,
                             int64_t seed, int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  if (other) check_output(*other, out);
  fake_quantize_into(x, other ? &*other : nullptr, relu,
                     grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), out);
}

void backward(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx) {
  check_like(x, grad, "grad");
  check_grid(x, arguments.scale, arguments.zero_point, arguments.axis);
  if (x.numel() == 0) return;
  with_float(x.scalar_type(), [&]<class T>() {
    with_rounding(arguments.rounding,
                  [&]<Rounding R>() { launch<StraightThrough<R>, T, T>({}, x, &grad, dx, arguments); });
  });
}

Tensor fake_quantize_backward(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                              int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                              int64_t offset) {
  Tensor dx = torch::stable::empty_like(x);
  backward(grad, x, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), dx);
  return dx;
}

void fake_quantize_backward_out(const Tensor& grad, const Tensor& x, const Tensor& scale, const Tensor& zero_point,
                                int64_t qmin, int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                                int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  check_output(grad, out);
  backward(grad, x, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset), out);
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CUDA, m) {
  m.impl("fake_quantize", TORCH_BOX(&pq::fake_quantize_op));
  m.impl("fake_quantize_", TORCH_BOX(&pq::fake_quantize_inplace));
  m.impl("fake_quantize_out", TORCH_BOX(&pq::fake_quantize_out));
  m.impl("fused_fake_quantize", TORCH_BOX(&pq::fused_fake_quantize));
  m.impl("fused_fake_quantize_out", TORCH_BOX(&pq::fused_fake_quantize_out));
  m.impl("fake_quantize_backward", TORCH_BOX(&pq::fake_quantize_backward));
  m.impl("fake_quantize_backward_out", TORCH_BOX(&pq::fake_quantize_backward_out));
}
