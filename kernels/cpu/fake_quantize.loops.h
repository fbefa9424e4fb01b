// Fake quantization of a row and its gradient. Included once an instruction set by each_isa.h. y may be x or other.
#include "convert.loops.h"

template <Before B, Rounding R, class Grids>
void fake_quantize_row(const float* x, const float* other, float* y, int64_t n, Grids grids, const float* u) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float sum = B.adds ? x[i] + other[i] : x[i];
    y[i] = fake_quantize(B.relu ? rectify(sum) : sum, grids.at(i), R, R == Rounding::stochastic ? u[i] : 0.0f);
  }
}

// The same on float16, converted in between without a detour through memory: rounded to nearest even, nothing
// added.
template <bool relu, class Grids>
void fake_quantize_float16(const char* from, char* to, int64_t n, Grids grids) {
  const HalfBits* x = reinterpret_cast<const HalfBits*>(from);
  HalfBits* y = reinterpret_cast<HalfBits*>(to);
  const auto one = [&](float v, int64_t i) {
    return fake_quantize(relu ? rectify(v) : v, grids.at(i), Rounding::half_even, 0.0f);
  };
  int64_t i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce) {
    alignas(64) float values[kAtOnce];
    load_some(x + i, values);
    PQ_INDEPENDENT
    for (int k = 0; k < kAtOnce; ++k) values[k] = one(values[k], i + k);
    store_some(values, y + i);
  }
  for (; i < n; ++i) y[i] = from_float<HalfBits>(one(to_float(x[i]), i));
}

// bfloat16 in pairs. What is NaN here came from x or from a grid's NaN: its lower half is 0, as store_pairs wants it.
template <bool relu, class Grids>
void fake_quantize_bfloat16(const char* from, char* to, int64_t n, Grids grids) {
  const BFloat16Bits* x = reinterpret_cast<const BFloat16Bits*>(from);
  BFloat16Bits* y = reinterpret_cast<BFloat16Bits*>(to);
  const auto one = [&](float v, Grid grid) {
    return fake_quantize(relu ? rectify(v) : v, grid, Rounding::half_even, 0.0f);
  };
  constexpr int kPairs = kAtOnce / 2;
  int64_t i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce) {
    alignas(64) float values[kAtOnce];
    load_pairs(x + i, values);
    PQ_INDEPENDENT
    for (int k = 0; k < kPairs; ++k) values[k] = one(values[k], grids.of_pair(i / 2 + k, 0));
    PQ_INDEPENDENT
    for (int k = 0; k < kPairs; ++k) values[kPairs + k] = one(values[kPairs + k], grids.of_pair(i / 2 + k, 1));
    store_pairs(values, y + i);
  }
  for (; i < n; ++i) y[i] = from_float<BFloat16Bits>(one(to_float(x[i]), grids.at(i)));
}

inline void add_row(const float* x, const float* other, float* sum, int64_t n) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) sum[i] = x[i] + other[i];
}

template <Rounding R, class Grids>
void straight_through_row(const float* g, const float* x, float* dx, int64_t n, Grids grids, const float* u) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i)
    dx[i] = straight_through(g[i], x[i], grids.at(i), R, R == Rounding::stochastic ? u[i] : 0.0f);
}
