// Partial sums of tensor_statistics: what the first and the second read gather of a chunk, and how two become one.
// Shared by the CPU and CUDA kernels, which cut the chunks each in its own fixed way.
#pragma once

#include "quantize.h"

namespace pq {

enum FirstRow { kSum, kPositiveSum, kPositiveSquare, kPositiveCount, kLow, kHigh, kFirst };
enum SecondRow { kAbsolute, kSquare, kSecond };
enum StatisticsRow {
  kCountOut,
  kMinOut,
  kMaxOut,
  kMeanOut,
  kAbsDevOut,
  kVarianceOut,
  kPositiveCountOut,
  kPositiveMeanOut,
  kPositiveMeanSquareOut,
  kStatistics
};

// NaN wins.
PQ_INLINE double smaller(double a, double b) { return b < a || b != b ? b : a; }
PQ_INLINE double larger(double a, double b) { return b > a || b != b ? b : a; }

struct First {
  double sum = 0.0, positive_sum = 0.0, positive_square = 0.0, positive_count = 0.0, low = INFINITY, high = -INFINITY;

  static PQ_INLINE First of(float x) {
    const double v = x, kept = x > 0.0f ? v : 0.0;
    return {v, kept, kept * kept, x > 0.0f ? 1.0 : 0.0, v, v};
  }
  static PQ_INLINE First read(const double* from, int64_t step) {
    return {from[kSum * step],           from[kPositiveSum * step], from[kPositiveSquare * step],
            from[kPositiveCount * step], from[kLow * step],         from[kHigh * step]};
  }
  PQ_INLINE void add(const First& other) {
    sum += other.sum;
    positive_sum += other.positive_sum;
    positive_square += other.positive_square;
    positive_count += other.positive_count;
    low = smaller(low, other.low);
    high = larger(high, other.high);
  }
  PQ_INLINE void write(double* to, int64_t step) const {
    to[kSum * step] = sum;
    to[kPositiveSum * step] = positive_sum;
    to[kPositiveSquare * step] = positive_square;
    to[kPositiveCount * step] = positive_count;
    to[kLow * step] = low;
    to[kHigh * step] = high;
  }
  // Into the rows of the result that the first read settles. Adding 0.0 turns -0 into +0: order must not show.
  PQ_INLINE void finish(double count, double* out, int64_t step) const {
    const double positive = positive_count > 0.0 ? positive_count : 1.0;
    out[kCountOut * step] = count;
    out[kMinOut * step] = low + 0.0;
    out[kMaxOut * step] = high + 0.0;
    out[kMeanOut * step] = count > 0.0 ? sum / count : 0.0;
    out[kPositiveCountOut * step] = positive_count;
    out[kPositiveMeanOut * step] = positive_sum / positive;
    out[kPositiveMeanSquareOut * step] = positive_square / positive;
  }
};

PQ_INLINE void finish_second(double absolute, double square, double count, double* out, int64_t step) {
  out[kAbsDevOut * step] = count > 0.0 ? absolute / count : 0.0;
  out[kVarianceOut * step] = count > 0.0 ? square / count : 0.0;
}

}  // namespace pq
