// Sixteen neighbours to and from float32, in registers where the result is used at once. Included once an instruction
// set by each_isa.h.

constexpr int kAtOnce = 16;

template <class T>
PQ_INLINE void load_some(const T* from, float* to) {
  PQ_INDEPENDENT
  for (int i = 0; i < kAtOnce; ++i) to[i] = to_float(from[i]);
}

template <class T>
PQ_INLINE void store_some(const float* from, T* to) {
  PQ_INDEPENDENT
  for (int i = 0; i < kAtOnce; ++i) to[i] = from_float<T>(from[i]);
}

#if defined(PQ_WIDE_ISA)

template <>
PQ_INLINE void load_some(const HalfBits* from, float* to) {
  PQ_UNROLLED
  for (int i = 0; i < kAtOnce; i += 8) {
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
}

template <>
PQ_INLINE void store_some(const float* from, HalfBits* to) {
  PQ_UNROLLED
  for (int i = 0; i < kAtOnce; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
  }
}

template <>
PQ_INLINE void load_some(const BFloat16Bits* from, float* to) {
  PQ_UNROLLED
  for (int i = 0; i < kAtOnce; i += 8) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)));
  }
}

// from_float<BFloat16Bits> of eight; compilers do not see that its results fit in 16 bits, and mask them once more.
PQ_INLINE __m256i bfloat16_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
  const __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(up), nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
}

template <>
PQ_INLINE void store_some(const float* from, BFloat16Bits* to) {
  const __m256i low = bfloat16_bits(_mm256_loadu_ps(from)), high = bfloat16_bits(_mm256_loadu_ps(from + 8));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);  // packs go lane by lane
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}

#endif
