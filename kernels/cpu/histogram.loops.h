// The bins of a chunk's values. Included once an instruction set by each_isa.h.

inline void bins_of(const float* x, int64_t n, Bins bins, int32_t* index) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) index[i] = bin_of(x[i], bins);
}
