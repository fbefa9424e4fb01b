// One chunk of a tensor into partial sums. Included once an instruction set by each_isa.h.
// Lanes are vectors of fixed width, whatever the registers': every instruction set adds the same numbers in one order.

// What no order can change is gathered in vectors as wide as registers are, at most kStep.
constexpr int kWide = kRegister < kStep ? kRegister : kStep;
using WideLanes = float __attribute__((vector_size(kWide * sizeof(float))));
using WideIntLanes = int32_t __attribute__((vector_size(kWide * sizeof(int32_t))));

// Two sets of lanes, taken in turns: an addition needn't wait for the one before it.
struct FirstSums {
  DoubleLanes sum{}, positive_sum{}, positive_square{};

  void add(const float* x) {
    FloatLanes v;
    __builtin_memcpy(&v, x, sizeof v);
    const FloatLanes positive = v > 0.0f ? v : FloatLanes{};
    const DoubleLanes kept = PQ_WIDENED(positive);
    sum += PQ_WIDENED(v);
    positive_sum += kept;
    positive_square += kept * kept;
  }
};

struct FirstEnds {
  WideIntLanes positive_count{}, is_nan{};
  WideLanes low = WideLanes{} + INFINITY, high = WideLanes{} - INFINITY;

  void add(const float* x) {
    WideLanes v;
    __builtin_memcpy(&v, x, sizeof v);
    positive_count -= v > 0.0f;  // true is -1
    is_nan |= v != v;
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
};

// results: kFirst numbers, `step` apart.
inline void first_chunk(const float* x, int64_t n, double* results, int64_t step) {
  FirstSums even, odd;
  FirstEnds ends;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    even.add(x + i);
    odd.add(x + i + kLanes);
    for (int at = 0; at < kStep; at += kWide) ends.add(x + i + at);
  }
  First total;
  const DoubleLanes sum = even.sum + odd.sum, positive_sum = even.positive_sum + odd.positive_sum;
  const DoubleLanes positive_square = even.positive_square + odd.positive_square;
  for (int lane = 0; lane < kLanes; ++lane) {
    total.add({sum[lane], positive_sum[lane], positive_square[lane], 0.0, INFINITY, -INFINITY});
  }
  for (int lane = 0; lane < kWide; ++lane) {
    const double nan = ends.is_nan[lane] ? NAN : 0.0, count = ends.positive_count[lane];
    total.add({0.0, 0.0, 0.0, count, ends.low[lane] + nan, ends.high[lane] + nan});
  }
  for (; i < n; ++i) total.add(First::of(x[i]));
  total.write(results, step);
}

struct SecondSums {
  DoubleLanes absolute{}, square{};

  void add(const float* x, double mean) {
    FloatLanes v;
    __builtin_memcpy(&v, x, sizeof v);
    const DoubleLanes centred = PQ_WIDENED(v) - mean;
    absolute += (DoubleLanes)((LongLanes)centred & INT64_MAX);  // without its sign
    square += centred * centred;
  }
};

// results: kSecond numbers, `step` apart.
inline void second_chunk(const float* x, int64_t n, double mean, double* results, int64_t step) {
  SecondSums even, odd;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    even.add(x + i, mean);
    odd.add(x + i + kLanes, mean);
  }
  const DoubleLanes absolute = even.absolute + odd.absolute, square = even.square + odd.square;
  double total_absolute = 0.0, total_square = 0.0;
  for (int lane = 0; lane < kLanes; ++lane) {
    total_absolute += absolute[lane];
    total_square += square[lane];
  }
  for (; i < n; ++i) {
    const double centred = static_cast<double>(x[i]) - mean;
    total_absolute += std::fabs(centred);
    total_square += centred * centred;
  }
  results[0] = total_absolute;
  results[step] = total_square;
}

// Channels innermost: x is n neighbouring channels, results their partial sums, kFirst rows `step` apart.
inline void first_channels(const float* x, int64_t n, double* results, int64_t step) {
  PQ_INDEPENDENT
  for (int64_t c = 0; c < n; ++c) {
    const double v = x[c];
    const double kept = v > 0.0 ? v : 0.0;
    double* result = results + c;
    result[kSum * step] += v;
    result[kPositiveSum * step] += kept;
    result[kPositiveSquare * step] += kept * kept;
    result[kPositiveCount * step] += v > 0.0 ? 1.0 : 0.0;
    result[kLow * step] = (v < result[kLow * step]) | (v != v) ? v : result[kLow * step];
    result[kHigh * step] = (v > result[kHigh * step]) | (v != v) ? v : result[kHigh * step];
  }
}

inline void second_channels(const float* x, int64_t n, const double* mean, double* results, int64_t step) {
  PQ_INDEPENDENT
  for (int64_t c = 0; c < n; ++c) {
    const double centred = static_cast<double>(x[c]) - mean[c];
    results[c] += std::fabs(centred);
    results[step + c] += centred * centred;
  }
}
