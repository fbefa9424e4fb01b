// One chunk of a tensor into partial sums. Included once an instruction set by each_isa.h.
// Lanes are vectors of fixed width, whatever the registers': every instruction set adds the same numbers in one order.

// results: kFirst numbers, `step` apart.
inline void first_chunk(const float* x, int64_t n, double* results, int64_t step) {
  DoubleLanes sum{}, positive_sum{}, positive_square{};
  IntLanes positive_count{};
  FloatLanes low = FloatLanes{} + INFINITY, high = FloatLanes{} - INFINITY, v;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    __builtin_memcpy(&v, x + i, sizeof v);
    const IntLanes positive = v > 0.0f;
    const DoubleLanes kept = __builtin_convertvector(positive ? v : FloatLanes{}, DoubleLanes);
    sum += __builtin_convertvector(v, DoubleLanes);
    positive_sum += kept;
    positive_square += kept * kept;
    positive_count -= positive;  // true is -1
    // A NaN is taken, and then kept: nothing is smaller than it.
    low = ((v < low) | (v != v)) ? v : low;
    high = ((v > high) | (v != v)) ? v : high;
  }
  First total;
  for (int lane = 0; lane < kLanes; ++lane) {
    total.add({sum[lane], positive_sum[lane], positive_square[lane], static_cast<double>(positive_count[lane]),
               low[lane], high[lane]});
  }
  for (; i < n; ++i) total.add(First::of(x[i]));
  total.write(results, step);
}

// results: kSecond numbers, `step` apart.
inline void second_chunk(const float* x, int64_t n, double mean, double* results, int64_t step) {
  DoubleLanes absolute{}, square{};
  FloatLanes v;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    __builtin_memcpy(&v, x + i, sizeof v);
    const DoubleLanes centred = __builtin_convertvector(v, DoubleLanes) - mean;
    absolute += centred < 0.0 ? -centred : centred;
    square += centred * centred;
  }
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
