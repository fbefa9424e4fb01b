// A row of any type and stride to and from float32. Included once an instruction set by each_isa.h.

template <class T>
void load_row(const char* bytes, int64_t stride, float* to, int64_t n) {
  const T* from = reinterpret_cast<const T*>(bytes);
  if (stride == 1) {
    PQ_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i * stride]);
  }
}

template <class T>
void store_row(const float* from, char* bytes, int64_t stride, int64_t n) {
  T* to = reinterpret_cast<T*>(bytes);
  if (stride == 1) {
    PQ_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * stride] = from_float<T>(from[i]);
  }
}

#if defined(PQ_WIDE_ISA)

template <>
inline void load_row<HalfBits>(const char* bytes, int64_t stride, float* to, int64_t n) {
  const HalfBits* from = reinterpret_cast<const HalfBits*>(bytes);
  int64_t i = 0;
  if (stride == 1) {
    for (; i + 8 <= n; i += 8) {
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
    }
  }
  for (; i < n; ++i) to[i] = to_float(from[i * stride]);
}

template <>
inline void store_row<HalfBits>(const float* from, char* bytes, int64_t stride, int64_t n) {
  HalfBits* to = reinterpret_cast<HalfBits*>(bytes);
  int64_t i = 0;
  if (stride == 1) {
    for (; i + 8 <= n; i += 8) {
      const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), halves);
    }
  }
  for (; i < n; ++i) to[i * stride] = from_float<HalfBits>(from[i]);
}

// from_float<BFloat16Bits> of eight; compilers do not see that its results fit in 16 bits, and mask them once more.
inline __m256i bfloat16_bits(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x),
                odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FC00000));
  const __m256 kept = _mm256_blendv_ps(_mm256_castsi256_ps(up), nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_castps_si256(kept), 16);
}

template <>
inline void store_row<BFloat16Bits>(const float* from, char* bytes, int64_t stride, int64_t n) {
  BFloat16Bits* to = reinterpret_cast<BFloat16Bits*>(bytes);
  int64_t i = 0;
  if (stride == 1) {
    for (; i + 16 <= n; i += 16) {
      const __m256i low = bfloat16_bits(_mm256_loadu_ps(from + i)), high = bfloat16_bits(_mm256_loadu_ps(from + i + 8));
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);  // packs go lane by lane
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), packed);
    }
  }
  for (; i < n; ++i) to[i * stride] = from_float<BFloat16Bits>(from[i]);
}

#endif

#include "random.loops.h"
