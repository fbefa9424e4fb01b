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

// Rounded to nearest even: the upper halves are bfloat16's, unless the lower half of a NaN carried over into them.
PQ_INLINE __m256i bfloat16_rounded(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
}

// from_float<BFloat16Bits> of eight; compilers do not see that its results fit in 16 bits, and mask them once more.
PQ_INLINE __m256i bfloat16_bits(__m256 x) {
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
  const __m256 up = _mm256_castsi256_ps(bfloat16_rounded(x));
  const __m256 kept = _mm256_blendv_ps(up, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
}

template <>
PQ_INLINE void store_some(const float* from, BFloat16Bits* to) {
  const __m256i low = bfloat16_bits(_mm256_loadu_ps(from)), high = bfloat16_bits(_mm256_loadu_ps(from + 8));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);  // packs go lane by lane
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), packed);
}

#endif

// Sixteen neighbours as eight pairs: values[k] of even places, values[8 + k] of odd ones. A pair of bfloat16 fills 32
// bits, so that nothing moves from lane to lane. On the way back a NaN's lower half must be 0: rounding would carry it
// over into another number.
PQ_INLINE void load_pairs(const BFloat16Bits* from, float* values) {
#if defined(PQ_WIDE_ISA)
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm256_storeu_ps(values, _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
  _mm256_storeu_ps(values + 8, _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-0x10000))));
#else
  for (int i = 0; i < kAtOnce; ++i) values[i / 2 + i % 2 * (kAtOnce / 2)] = to_float(from[i]);
#endif
}

PQ_INLINE void store_pairs(const float* values, BFloat16Bits* to) {
#if defined(PQ_WIDE_ISA)
  const __m256i even = _mm256_srli_epi32(bfloat16_rounded(_mm256_loadu_ps(values)), 16);
  const __m256i odd = bfloat16_rounded(_mm256_loadu_ps(values + 8));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_blend_epi16(even, odd, 0xAA));
#else
  for (int i = 0; i < kAtOnce; ++i) to[i] = from_float<BFloat16Bits>(values[i / 2 + i % 2 * (kAtOnce / 2)]);
#endif
}
