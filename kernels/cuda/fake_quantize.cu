// fake_quantize on CUDA: out of place, in place, into `out`, with an addition and a ReLU before it in the same pass,
// and its straight-through gradient.

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

void straight_through_into(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx) {
  with_float(x.scalar_type(), [&]<class T>() {
    with_rounding(arguments.rounding,
                  [&]<Rounding R>() { launch<StraightThrough<R>, T, T>({}, x, &grad, dx, arguments); });
  });
}

}  // namespace pq
