// Fake quantization of a row and its gradient. Included once an instruction set by each_isa.h. y may be x or other.

template <Before B, Rounding R, class Grids>
void fake_quantize_row(const float* x, const float* other, float* y, int64_t n, Grids grids, const float* u) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const float sum = B.adds ? x[i] + other[i] : x[i];
    y[i] = fake_quantize(B.relu ? rectify(sum) : sum, grids.at(i), R, R == Rounding::stochastic ? u[i] : 0.0f);
  }
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
