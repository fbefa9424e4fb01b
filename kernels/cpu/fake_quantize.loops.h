// Fake quantization of a row and its gradient. Included once an instruction set by each_isa.h. y may be x.

template <Rounding R, class Grids>
void fake_quantize_row(const float* x, float* y, int64_t n, Grids grids, Randoms randoms) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = fake_quantize(x[i], grids.at(i), R, randoms.at(i));
}

template <Rounding R, class Grids>
void straight_through_row(const float* g, const float* x, float* dx, int64_t n, Grids grids, Randoms randoms) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) dx[i] = straight_through(g[i], x[i], grids.at(i), R, randoms.at(i));
}
