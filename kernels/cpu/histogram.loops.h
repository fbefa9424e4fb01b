// Counting a chunk's values. Included once an instruction set by each_isa.h.

using WideFloats = float __attribute__((vector_size(kRegister * sizeof(float))));
using WideInts = int32_t __attribute__((vector_size(kRegister * sizeof(int32_t))));

// counts: `tables` tables of bins + kBesidePlaces, filled in turns. A register's values are counted kLag after their
// places were worked out: the processor does both at once, and no place is read before it has left the store queue.
template <class Count, int tables>
void count_values(const float* x, int64_t n, Bins bins, Count* counts) {
  constexpr int64_t kLag = 128, kRing = 2 * kLag;
  alignas(64) int32_t ring[kRing];
  Count* table[tables];
  for (int t = 0; t < tables; ++t) table[t] = counts + t * (bins.bins + kBesidePlaces);
  const auto place = [&](int64_t i) {
    WideFloats values;
    __builtin_memcpy(&values, x + i, sizeof values);
    const WideInts places = place_of<WideFloats, WideInts>(values, bins);
    __builtin_memcpy(ring + i % kRing, &places, sizeof places);
  };
  const auto count = [&](int64_t i) {
    const int32_t* places = ring + i % kRing;
    for (int k = 0; k < kRegister; ++k) ++table[k % tables][places[k]];
  };
  const int64_t whole = n / kRegister * kRegister, lag = whole < kLag ? whole : kLag;
  for (int64_t i = 0; i < lag; i += kRegister) place(i);
  for (int64_t i = lag; i < whole; i += kRegister) {
    place(i);
    count(i - lag);
  }
  for (int64_t i = whole - lag; i < whole; i += kRegister) count(i);
  for (int64_t i = whole; i < n; ++i) ++table[0][place_of<float, int32_t>(x[i], bins)];
}
