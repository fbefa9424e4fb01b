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

// The same on a half type, converted in between without a detour through memory: rounded to nearest even, nothing
// added.
template <class T, bool relu, class Grids>
void fake_quantize_halves(const char* from, char* to, int64_t n, Grids grids) {
  const T* x = reinterpret_cast<const T*>(from);
  T* y = reinterpret_cast<T*>(to);
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
  for (; i < n; ++i) y[i] = from_float<T>(one(to_float(x[i]), i));
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
