// Gradients of a row and their sums. Included once an instruction set by each_isa.h.
#include "lanes.loops.h"

template <class Grids>
void learned_row(const float* g, const float* x, float* dx, float* slope, float* outside, int64_t n, Grids grids) {
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) {
    const Learned one = learned(g[i], x[i], grids.at(i));
    dx[i] = one.dx;
    slope[i] = one.slope;
    outside[i] = one.outside;
  }
}

struct LearnedSums {
  DoubleLanes slope{}, outside{};

  void add(const float* g, const float* slopes, const float* outsides) {
    FloatLanes gradient, one, other;
    __builtin_memcpy(&gradient, g, sizeof gradient);
    __builtin_memcpy(&one, slopes, sizeof one);
    __builtin_memcpy(&other, outsides, sizeof other);
    slope = add_exact_product(slope, PQ_WIDENED(gradient), PQ_WIDENED(one));
    outside += PQ_WIDENED(other);
  }
};

// Adds to results[0] and results[1] what a row of one channel gives to Σ g·slope and Σ outside.
inline void sum_row(const float* g, const float* slope, const float* outside, int64_t n, double* results) {
  LearnedSums even, odd;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    even.add(g + i, slope + i, outside + i);
    odd.add(g + i + kLanes, slope + i + kLanes, outside + i + kLanes);
  }
  const DoubleLanes slopes = even.slope + odd.slope, outsides = even.outside + odd.outside;
  for (int lane = 0; lane < kLanes; ++lane) {
    results[0] += slopes[lane];
    results[1] += outsides[lane];
  }
  for (; i < n; ++i) {
    results[0] += static_cast<double>(g[i]) * static_cast<double>(slope[i]);
    results[1] += static_cast<double>(outside[i]);
  }
}

// The same for n neighbouring channels; `step` apart.
inline void sum_channels(const float* g, const float* slope, const float* outside, int64_t n, double* results,
                         int64_t step) {
  PQ_INDEPENDENT
  for (int64_t c = 0; c < n; ++c) {
    results[c] += static_cast<double>(g[c]) * static_cast<double>(slope[c]);
    results[step + c] += static_cast<double>(outside[c]);
  }
}
