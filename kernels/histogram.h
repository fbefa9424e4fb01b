// The bin of one value, shared by the CPU and CUDA kernels of histogram.
#pragma once

#include <type_traits>

#include "quantize.h"

namespace pq {

constexpr int64_t kMaxBins = int64_t{1} << 24;  // whole numbers up to there are float32's own

// Bins of width 2^k, half of them below zero: bin i holds [(i − bins/2)·2^k, (i + 1 − bins/2)·2^k). A row of counts has
// two entries more: exact zeros, which are in no bin, and what lies outside all bins, NaN with it.
struct Bins {
  float inverse;  // 2^−k
  int32_t bins;
};

constexpr int kBesideBins = 2;

inline float inverse_width(int64_t exponent) { return std::ldexp(1.0f, static_cast<int>(-exponent)); }

// Where a value is counted on the way: place i + 1 for bin i, 0 and bins + 1 for what lies outside (NaN above), and
// bins + 2 for zeros. Six comparisons fewer than the entry itself, and the entries are made of places once at the end.
constexpr int kBesidePlaces = 3;

// A conversion between float and int32_t, or between vectors of them.
template <class To, class From>
PQ_INLINE To whole_number(From x) {
#if defined(__CUDACC__)
  return static_cast<To>(x);
#else
  if constexpr (std::is_arithmetic_v<From>) {
    return static_cast<To>(x);
  } else {
    return __builtin_convertvector(x, To);
  }
#endif
}

// ⌊x·2^−k⌋ is exact: a product with a power of two loses nothing unless it underflows, and what is below zero is kept
// there by taking the smallest normal number away, which changes no other floor. F and I: float and int32_t, or vectors
// of them.
template <class F, class I>
PQ_INLINE I place_of(F x, Bins b) {
  const F none = F{}, above = none + static_cast<float>(b.bins / 2), below = -1.0f - above;
  const F scaled = x * b.inverse - (x < 0.0f ? none + FLT_MIN : none);
  const F low = scaled < above ? scaled : above;  // NaN: above
  const F kept = low > below ? low : below;
  const I toward_zero = whole_number<I>(kept);
  const I floor = toward_zero - (whole_number<F>(toward_zero) > kept ? I{} + 1 : I{});
  return x == 0.0f ? I{} + (b.bins + 2) : floor + (b.bins / 2 + 1);
}

PQ_INLINE int32_t entry_of(int32_t place, int32_t bins) {
  if (place == bins + 2) return bins;
  return place == 0 || place == bins + 1 ? bins + 1 : place - 1;
}

constexpr int64_t kLeastExponent = -126;

PQ_INLINE bool is_finite(float x) { return fabsf(x) <= FLT_MAX; }

// The least k, not below kLeastExponent, for which |x| < bins/2 · 2^k holds up to the largest |x|.
PQ_INLINE int64_t exponent_for(float largest, int32_t bins) {
  if (!(largest > 0.0f)) return kLeastExponent;
  int exponent = 0;
  frexpf(largest, &exponent);  // largest < 2^exponent
  for (int32_t half = bins / 2; half > 1; half /= 2) --exponent;
  return exponent < kLeastExponent ? kLeastExponent : exponent;
}

// The width after values up to `largest` are added; what isn't finite is not counted and widens nothing.
PQ_INLINE int64_t grown(int64_t exponent, float largest, int32_t bins) {
  const int64_t needed = is_finite(largest) ? exponent_for(largest, bins) : exponent;
  return needed > exponent ? needed : exponent;
}

// Where a bin's count goes when bins become 2^shift times as wide; zeros and what lies outside stay what they are.
PQ_INLINE int32_t coarser(int32_t entry, int64_t shift, int32_t bins) {
  if (entry >= bins) return entry;
  return ((entry - bins / 2) >> (shift < 31 ? shift : 31)) + bins / 2;
}

}  // namespace pq
