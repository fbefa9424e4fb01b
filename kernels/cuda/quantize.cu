// quantize (to integer codes) and dequantize on CUDA.

#include "../ops.h"
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

}  // namespace

void quantize_into(const Tensor& x, const GridArguments& arguments, const Tensor& codes) {
  const Code f{arguments.rounding};
  with_float(x.scalar_type(), [&]<class T>() {
    with_code(codes.scalar_type(), [&]<class Q>() { launch<Code, T, Q>(f, x, nullptr, codes, arguments); });
  });
}

void dequantize_into(const Tensor& codes, const GridArguments& arguments, const Tensor& y) {
  with_code(codes.scalar_type(), [&]<class Q>() {
    with_float(y.scalar_type(), [&]<class T>() { launch<Dequantize, Q, T>({}, codes, nullptr, y, arguments); });
  });
}

}  // namespace pq
