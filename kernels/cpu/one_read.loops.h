// One chunk of a tensor into all that both reads would give, but for the mean's own neighbours: see one_read.h.
// Included by statistics.loops.h.

// Bit i tells whether lane i holds true.
inline unsigned bits_of(WideIntLanes truth) {
#if defined(PQ_WIDE_ISA)
  return _mm256_movemask_ps((__m256)truth);
#else
  unsigned bits = 0;
  for (int lane = 0; lane < kWide; ++lane) bits |= (truth[lane] & 1u) << lane;
  return bits;
#endif
}

constexpr int64_t kWord = 64;

// Of a word's elements those whose bit is set, to `kept`; returns how many. Seldom more than three: three are written
// whether they are there or not, which no branch has to foresee.
inline int64_t keep(const float* x, uint64_t bits, float* kept) {
  constexpr uint64_t kLast = uint64_t{1} << (kWord - 1);
  const int64_t count = __builtin_popcountll(bits);
  PQ_UNROLLED
  for (int64_t k = 0; k < 3; ++k) {
    kept[k] = x[__builtin_ctzll(bits | kLast)];
    bits &= bits - 1;
  }
  for (int64_t k = 3; k < count; ++k) {
    kept[k] = x[__builtin_ctzll(bits)];
    bits &= bits - 1;
  }
  return count;
}

// What a chunk's whole steps give.
struct OnceLanes {
  FirstSums even, odd;
  FirstEnds ends;
  DoubleLanes floor, floored{}, square{};  // Σ max(x, floor) and Σx²
  WideLanes low, high;
  WideIntLanes above{};

  explicit OnceLanes(Middle middle)
      : floor(DoubleLanes{} + static_cast<double>(middle.high)),
        low(WideLanes{} + middle.low),
        high(WideLanes{} + middle.high) {}

  // Adds n elements, kWord at most; returns those within the middle, a bit each. Doubles and floats take turns: there
  // aren't registers enough for the sums of both, nor for either loop unrolled.
  PQ_INLINE uint64_t add(const float* x, int64_t n) {
    PQ_ROLLED
    for (int64_t i = 0; i < n; i += kStep) {
      ask_ahead(x + i);
      add_doubles(widened(x + i), widened(x + i + kLanes));
    }
    uint64_t within = 0;
    PQ_ROLLED
    for (int64_t i = 0; i < n; i += kWide) {
      ends.add(x + i);
      within |= uint64_t{sort(x + i)} << i;
    }
    return within;
  }

  Once total() const {
    Once total;
    for (int lane = 0; lane < kLanes; ++lane) total.excess += floored[lane], total.square += square[lane];
    for (int lane = 0; lane < kWide; ++lane) total.above += above[lane];
    return total;
  }

 private:
  PQ_INLINE void add_doubles(DoubleLanes left, DoubleLanes right) {
    even.add(left);
    odd.add(right);
    floored += at_least(left, floor) + at_least(right, floor);
    square += add_exact_product(left * left, right, right);
  }

  PQ_INLINE unsigned sort(const float* x) {
    WideLanes v;
    __builtin_memcpy(&v, x, sizeof v);
    const WideIntLanes over = v > high;
    above -= over;  // true is -1
    return bits_of(over ^ (v >= low));
  }
};

// results: kOnce numbers. kept: room for n + 3. Returns how many were kept.
inline int64_t once_chunk(const float* x, int64_t n, Middle middle, float* kept, double* results) {
  OnceLanes lanes(middle);
  const int64_t whole = n / kStep * kStep, words = n / kWord * kWord;
  int64_t count = 0;
  for (int64_t i = 0; i < whole; i += kWord) {
    const uint64_t within = lanes.add(x + i, i < words ? kWord : whole - i);
    if (i < words) count += keep(x + i, within, kept + count);
  }
  for (int64_t i = words; i < n; ++i) {
    if (middle.holds(x[i])) kept[count++] = x[i];
  }
  join_first(lanes.even, lanes.odd, lanes.ends, x, whole, n, results, 1);
  Once total = lanes.total();
  total.excess -= static_cast<double>(whole) * middle.high;
  for (int64_t i = whole; i < n; ++i) total.add(Once::of(x[i], middle));
  total.write(results);
  return count;
}

// Σ max(x − level, 0).
inline double excess_over(double level, const float* x, int64_t n) {
  DoubleLanes sums{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sums += at_least(widened(x + i) - level, DoubleLanes{});
  double total = sums[0] + sums[1] + sums[2] + sums[3];
  for (; i < n; ++i) total += x[i] > level ? x[i] - level : 0.0;
  return total;
}
