// Codes of a row, as float32 integers, and back. Included once an instruction set by each_isa.h.

template <Rounding R, class Grids>
void quantize_row(const float* x, float* q, int64_t n, Grids grids, const float* u) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) q[i] = code(x[i], grids.at(i), R, R == Rounding::stochastic ? u[i] : 0.0f);
}

template <class Grids>
void dequantize_row(const float* q, float* y, int64_t n, Grids grids) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) y[i] = dequantize(q[i], grids.at(i));
}
