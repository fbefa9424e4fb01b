// What lanes do beyond C++'s own operators. Included once an instruction set by each_isa.h.

// sum + a·b, where the product of what were float32 numbers is exact in float64: in one instruction or two the same
// bits.
inline DoubleLanes add_exact_product(DoubleLanes sum, DoubleLanes a, DoubleLanes b) {
#if defined(PQ_WIDE_ISA)
  return (DoubleLanes)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#else
  return sum + a * b;
#endif
}
