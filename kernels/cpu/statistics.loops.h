// One chunk of a tensor into partial sums. Included once an instruction set by each_isa.h.
// Lanes are vectors of fixed width, whatever the registers': every instruction set adds the same numbers in one order.

#include "lanes.loops.h"

// What no order can change is gathered in vectors as wide as registers are, at most kStep.
constexpr int kWide = kRegister < kStep ? kRegister : kStep;
using WideLanes = float __attribute__((vector_size(kWide * sizeof(float))));
using WideIntLanes = int32_t __attribute__((vector_size(kWide * sizeof(int32_t))));

// Asks memory for what a chunk's loop needs two pages ahead, where processors themselves stop at one. It may lie beyond
// the chunk, in the next one or, where the chunk is a buffer, in nothing of use: to ask faults nowhere.
PQ_INLINE void ask_ahead(const float* x) {
  constexpr uintptr_t kAhead = 2048 * sizeof(float);
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(x) + kAhead));
}

inline DoubleLanes widened(const float* x) {
  FloatLanes v;
  __builtin_memcpy(&v, x, sizeof v);
  return PQ_WIDENED(v);
}

// The larger of the two; of NaN the floor.
inline DoubleLanes at_least(DoubleLanes v, DoubleLanes floor) {
#if defined(PQ_WIDE_ISA)
  return (DoubleLanes)_mm256_max_pd((__m256d)v, (__m256d)floor);
#else
  return v > floor ? v : floor;
#endif
}

// Four channels, or four neighbours of one. Two such sets are filled in turns: no addition waits for the one before it.
struct FirstSums {
  DoubleLanes sum{}, positive_sum{}, positive_square{};

  void add(DoubleLanes wide) {
    const DoubleLanes kept = at_least(wide, DoubleLanes{});
    sum += wide;
    positive_sum += kept;
    positive_square = add_exact_product(positive_square, kept, kept);
  }
};

// NaN is in no end and in no count: the sum tells of it.
struct FirstEnds {
  WideIntLanes positive_count{};
  WideLanes low = WideLanes{} + INFINITY, high = WideLanes{} - INFINITY;

  void add(const float* x) {
    WideLanes v;
    __builtin_memcpy(&v, x, sizeof v);
    positive_count -= v > 0.0f;  // true is -1
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
};

inline bool any_nan(const float* x, int64_t n, int64_t stride) {
  bool found = false;
  for (int64_t i = 0; i < n; ++i) found |= x[i * stride] != x[i * stride];
  return found;
}

// A sum that is NaN has met one, or infinities of both signs.
inline void find_nan(First& total, const float* x, int64_t n, int64_t stride) {
  if (total.sum != total.sum && any_nan(x, n, stride)) total.low = total.high = NAN;
}

// The whole steps of a chunk become one: the rest of it, from `done` on, is added by the element. Into results, kFirst
// numbers `step` apart.
inline void join_first(const FirstSums& even, const FirstSums& odd, const FirstEnds& ends, const float* x, int64_t done,
                       int64_t n, double* results, int64_t step) {
  First total;
  const DoubleLanes sum = even.sum + odd.sum, positive_sum = even.positive_sum + odd.positive_sum;
  const DoubleLanes positive_square = even.positive_square + odd.positive_square;
  for (int lane = 0; lane < kLanes; ++lane) {
    total.sum += sum[lane], total.positive_sum += positive_sum[lane], total.positive_square += positive_square[lane];
  }
  int64_t positive = 0;
  float low = INFINITY, high = -INFINITY;
  for (int lane = 0; lane < kWide; ++lane) {
    positive += ends.positive_count[lane];
    low = ends.low[lane] < low ? ends.low[lane] : low;
    high = ends.high[lane] > high ? ends.high[lane] : high;
  }
  total.positive_count = static_cast<double>(positive), total.low = low, total.high = high;
  for (int64_t i = done; i < n; ++i) total.add(First::of(x[i]));
  find_nan(total, x, n, 1);
  total.write(results, step);
}

// results: kFirst numbers, `step` apart.
inline void first_chunk(const float* x, int64_t n, double* results, int64_t step) {
  FirstSums even, odd;
  FirstEnds ends;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    ask_ahead(x + i);
    even.add(widened(x + i));
    odd.add(widened(x + i + kLanes));
    for (int at = 0; at < kStep; at += kWide) ends.add(x + i + at);
  }
  join_first(even, odd, ends, x, i, n, results, step);
}

struct SecondSums {
  DoubleLanes absolute{}, square{};

  template <class Mean>
  void add(const float* x, Mean mean) {
    const DoubleLanes centred = widened(x) - mean;
    absolute += (DoubleLanes)((LongLanes)centred & INT64_MAX);  // without its sign
    square += centred * centred;
  }
};

// results: kSecond numbers, `step` apart.
inline void second_chunk(const float* x, int64_t n, double mean, double* results, int64_t step) {
  SecondSums even, odd;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    ask_ahead(x + i);
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

// Channels innermost: `rows` rows, `stride` apart, of n neighbouring channels; results are their partial sums so far,
// in rows `step` apart. Lanes are channels here.
inline void first_tile(const float* x, int64_t rows, int64_t stride, double* results, int64_t step) {
  FirstSums sums[kStep / kLanes];
  FirstEnds ends[kStep / kWide];
  for (int64_t row = 0; row < rows; ++row) {
    for (int at = 0; at < kStep; at += kLanes) sums[at / kLanes].add(widened(x + row * stride + at));
    for (int at = 0; at < kStep; at += kWide) ends[at / kWide].add(x + row * stride + at);
  }
  for (int c = 0; c < kStep; ++c) {
    const FirstSums& sum = sums[c / kLanes];
    const FirstEnds& end = ends[c / kWide];
    const int lane = c % kLanes, wide = c % kWide;
    First total{
        sum.sum[lane], sum.positive_sum[lane], sum.positive_square[lane], static_cast<double>(end.positive_count[wide]),
        end.low[wide], end.high[wide]};
    find_nan(total, x + c, rows, stride);
    total.add(First::read(results + c, step));
    total.write(results + c, step);
  }
}

inline void first_rows(const float* x, int64_t rows, int64_t stride, int64_t n, double* results, int64_t step) {
  int64_t c = 0;
  for (; c + kStep <= n; c += kStep) first_tile(x + c, rows, stride, results + c, step);
  for (; c < n; ++c) {
    First total;
    for (int64_t row = 0; row < rows; ++row) total.add(First::of(x[row * stride + c]));
    total.add(First::read(results + c, step));
    total.write(results + c, step);
  }
}

inline void second_tile(const float* x, int64_t rows, int64_t stride, const double* mean, double* results,
                        int64_t step) {
  SecondSums sums[kStep / kLanes];
  DoubleLanes means[kStep / kLanes];
  __builtin_memcpy(means, mean, sizeof means);
  for (int64_t row = 0; row < rows; ++row) {
    for (int at = 0; at < kStep; at += kLanes) sums[at / kLanes].add(x + row * stride + at, means[at / kLanes]);
  }
  for (int c = 0; c < kStep; ++c) {
    results[c] += sums[c / kLanes].absolute[c % kLanes];
    results[step + c] += sums[c / kLanes].square[c % kLanes];
  }
}

inline void second_rows(const float* x, int64_t rows, int64_t stride, int64_t n, const double* mean, double* results,
                        int64_t step) {
  int64_t c = 0;
  for (; c + kStep <= n; c += kStep) second_tile(x + c, rows, stride, mean + c, results + c, step);
  for (; c < n; ++c) {
    for (int64_t row = 0; row < rows; ++row) {
      const double centred = static_cast<double>(x[row * stride + c]) - mean[c];
      results[c] += std::fabs(centred);
      results[step + c] += centred * centred;
    }
  }
}

#include "one_read.loops.h"
