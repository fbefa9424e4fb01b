// The bin of one value, shared by the CPU and CUDA kernels of histogram.
#pragma once

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

// ⌊x·2^−k⌋ is exact: a product with a power of two loses nothing unless it underflows, and then its sign tells the bin.
PQ_INLINE int32_t bin_of(float x, Bins b) {
  const float half = static_cast<float>(b.bins / 2), below = -half - 1.0f, scaled = x * b.inverse;
  const float low = scaled > below ? scaled : below, kept = scaled < half ? low : half;  // NaN: half, which is outside
  const int32_t whole = static_cast<int32_t>(kept);
  const int32_t down = static_cast<float>(whole) > kept ? 1 : 0;
  const int32_t lost = (x < 0.0f) & (whole - down == 0) ? 1 : 0;
  const int32_t index = whole - down - lost + b.bins / 2;
  const int32_t inside = (index >= 0) & (index < b.bins) ? index : b.bins + 1;
  return x == 0.0f ? b.bins : inside;
}

}  // namespace pq
