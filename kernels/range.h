// From a tensor's statistics to its grid: the clipping range that an analytic rule gives, and GEMMLOWP's grid over it.
// The same arithmetic, in float64, as quantization/clipping.py and qparams.py; their docstrings give the formulas.
#pragma once

#include "quantize.h"
#include "statistics.h"

namespace pq {

// What the range reaches over about the mean: nothing (min-max), E|x − μ|, or the standard deviation.
enum class Spread : int64_t { none, abs_dev, deviation };
// What is known of the values: any, those of a ReLU whose input was observed, or not negative.
enum class Support : int64_t { real, rectified, nonnegative };

struct RangeRule {
  Spread spread;
  Support support;
  double reach;    // times the spread
  double ceiling;  // where the ReLU saturates
  bool symmetric;
};

struct Range {
  double lo, hi;
};

PQ_INLINE double bounded(double x, double lo, double hi) {
  const double above = x < lo ? lo : x;
  return above > hi ? hi : above;
}

// row: statistics of one channel, `step` apart.
PQ_INLINE double spread_of(const double* row, int64_t step, const RangeRule& rule) {
  const bool positive = rule.support == Support::nonnegative;
  if (rule.spread == Spread::abs_dev) return row[(positive ? kPositiveMeanOut : kAbsDevOut) * step];
  return sqrt(row[(positive ? kPositiveMeanSquareOut : kVarianceOut) * step]);
}

PQ_INLINE Range range_of(const double* row, int64_t step, const RangeRule& rule) {
  Range seen{row[kMinOut * step], row[kMaxOut * step]};
  if (rule.support == Support::rectified) {
    seen = {bounded(seen.lo, 0.0, rule.ceiling), bounded(seen.hi, 0.0, rule.ceiling)};
  }
  if (rule.spread == Spread::none) return seen;
  const double alpha = rule.reach * spread_of(row, step, rule);
  const double mean = rule.support == Support::nonnegative ? 0.0 : row[kMeanOut * step];
  const Range wanted =
      rule.support == Support::real ? Range{mean - alpha, mean + alpha} : Range{0.0, (mean < 0.0 ? 0.0 : mean) + alpha};
  return {bounded(wanted.lo, seen.lo, seen.hi), bounded(wanted.hi, seen.lo, seen.hi)};
}

struct ScaleAndZeroPoint {
  float scale;
  int32_t zero_point;
};

PQ_INLINE ScaleAndZeroPoint grid_over(Range range, double qmin, double qmax, bool symmetric) {
  constexpr double kCentred = 1e-6;  // |lo + hi| below this share of the range counts as centred on zero
  if (!symmetric) range = {range.lo < 0.0 ? range.lo : 0.0, range.hi > 0.0 ? range.hi : 0.0};
  const bool point = range.lo == 0.0 && range.hi == 0.0;
  const double largest = fabs(range.lo) > fabs(range.hi) ? fabs(range.lo) : fabs(range.hi);
  const double step = symmetric ? largest / qmax : (range.hi - range.lo) / (qmax - qmin);
  const float scale = static_cast<float>(point ? 1.0 : bounded(step, FLT_MIN, FLT_MAX));
  double zero = 0.0;
  if (!symmetric) {
    const bool centred = fabs(range.lo + range.hi) <= kCentred * (range.hi - range.lo) && range.hi > range.lo;
    zero = bounded(rint(qmin - range.lo / scale), qmin, qmax);
    if (centred) zero = qmin < 0.0 ? 0.0 : (qmax + 1.0) / 2.0;
    if (point) zero = qmin > 0.0 ? qmin : 0.0;
  }
  return {scale, static_cast<int32_t>(zero)};
}

// The grid of one channel; a scale of NaN where nothing, NaN or something infinite was observed.
PQ_INLINE ScaleAndZeroPoint online_grid(const double* row, int64_t step, const RangeRule& rule, double qmin,
                                        double qmax) {
  const bool known =
      row[kCountOut * step] > 0.0 && fabs(row[kMinOut * step]) <= FLT_MAX && fabs(row[kMaxOut * step]) <= FLT_MAX;
  return known ? grid_over(range_of(row, step, rule), qmin, qmax, rule.symmetric) : ScaleAndZeroPoint{NAN, 0};
}

}  // namespace pq
