// The nearest level of each value of a row, or its index, and back. Included once an instruction set by each_isa.h.
// coded: the index is wanted, as float32, and NaN taken for zero. y may be x.

using Floats = float __attribute__((vector_size(kRegister * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kRegister * sizeof(int32_t))));
// As they lie in a row: of a copy by memcpy the compiler makes several narrow ones.
using RowFloats = float __attribute__((vector_size(kRegister * sizeof(float)), aligned(sizeof(float)), may_alias));
using RowInts = int32_t __attribute__((vector_size(kRegister * sizeof(int32_t)), aligned(sizeof(int32_t)), may_alias));

constexpr int kTogether = 4;    // registers of values that meet a level at once: it is read once for them all
constexpr int32_t kGroup = 16;  // levels that share a first step of the search

// Not Floats{} + number: that would make +0 of -0.
inline Floats in_each_lane(float number) { return number - Floats{}; }

template <bool coded>
inline Floats load(const float* x) {
  const Floats values = *reinterpret_cast<const RowFloats*>(x);
  return coded ? (values == values ? values : Floats{}) : values;
}

inline void store(float* y, Floats values) { *reinterpret_cast<RowFloats*>(y) = values; }

// What is left of a row when no register is full.
template <bool coded>
inline float nearest(float x, Codebook codebook) {
  return coded ? static_cast<float>(level_index(without_nan(x), codebook)) : nearest_level(x, codebook);
}

// Few levels: every value meets them all in ascending order and keeps the last whose threshold it is above.
template <bool coded, int registers>
inline void meet_levels(const float* x, float* y, Codebook codebook) {
  Floats values[registers], kept[registers];
  PQ_UNROLLED
  for (int r = 0; r < registers; ++r) {
    values[r] = load<coded>(x + r * kRegister);
    kept[r] = coded ? Floats{} : in_each_lane(codebook.levels[0]);
  }
  Floats level{};
  for (int32_t i = 0; i + 1 < codebook.count; ++i) {
    const Floats threshold = in_each_lane(codebook.highest[i]);
    level = coded ? level + 1.0f : in_each_lane(codebook.levels[i + 1]);
    PQ_UNROLLED
    for (int r = 0; r < registers; ++r) kept[r] = values[r] > threshold ? level : kept[r];
  }
  PQ_UNROLLED
  for (int r = 0; r < registers; ++r) {
    store(y + r * kRegister, coded ? kept[r] : values[r] == values[r] ? kept[r] : values[r]);
  }
}

template <bool coded>
inline void store_found(float* y, Floats values, Ints index, const float* levels) {
  if constexpr (coded) {
    store(y, __builtin_convertvector(index, Floats));
  } else {
    store(y, values == values ? look_up(levels, index) : values);
  }
}

// Many levels, kGroup or more: a value meets the highest of each group alone; which of its group's levels is nearest a
// binary search finds. The last group begins kGroup from the end, so that no search reads beyond.
template <bool coded, int registers>
inline void search_levels(const float* x, float* y, Codebook codebook) {
  Floats values[registers];
  Ints index[registers];
  PQ_UNROLLED
  for (int r = 0; r < registers; ++r) {
    values[r] = load<coded>(x + r * kRegister);
    index[r] = Ints{};
  }
  for (int32_t i = kGroup - 1; i + 1 < codebook.count; i += kGroup) {
    const Floats threshold = in_each_lane(codebook.highest[i]);
    PQ_UNROLLED
    for (int r = 0; r < registers; ++r) index[r] -= values[r] > threshold;  // true is -1
  }
  const Ints last = codebook.count - kGroup - Ints{};
  PQ_UNROLLED
  for (int r = 0; r < registers; ++r) index[r] = index[r] * kGroup < last ? index[r] * kGroup : last;
  for (int32_t half = kGroup / 2; half > 0; half /= 2) {
    const float* at = codebook.highest + half - 1;
    PQ_UNROLLED
    for (int r = 0; r < registers; ++r) index[r] += (values[r] > look_up(at, index[r])) & half;
  }
  PQ_UNROLLED
  for (int r = 0; r < registers; ++r) store_found<coded>(y + r * kRegister, values[r], index[r], codebook.levels);
}

template <bool coded>
void select_row(const float* x, float* y, int64_t n, Codebook codebook) {
  int64_t i = 0;
  for (; i + kTogether * kRegister <= n; i += kTogether * kRegister) {
    meet_levels<coded, kTogether>(x + i, y + i, codebook);
  }
  for (; i + kRegister <= n; i += kRegister) meet_levels<coded, 1>(x + i, y + i, codebook);
  for (; i < n; ++i) y[i] = nearest<coded>(x[i], codebook);
}

template <bool coded>
void search_row(const float* x, float* y, int64_t n, Codebook codebook) {
  int64_t i = 0;
  for (; i + kTogether * kRegister <= n; i += kTogether * kRegister) {
    search_levels<coded, kTogether>(x + i, y + i, codebook);
  }
  for (; i + kRegister <= n; i += kRegister) search_levels<coded, 1>(x + i, y + i, codebook);
  for (; i < n; ++i) y[i] = nearest<coded>(x[i], codebook);
}

// Channels innermost: a binary search in the table of each value's own channel.
template <bool coded>
void search_channels(const float* x, float* y, int64_t n, Codebook codebook, const int32_t* channels) {
  int64_t i = 0;
  for (; i + kRegister <= n; i += kRegister) {
    const Ints channel = *reinterpret_cast<const RowInts*>(channels + i), begin = channel * (codebook.count - 1);
    const Floats values = load<coded>(x + i);
    Ints index = begin;
    for (int32_t left = codebook.count - 1; left > 0; left /= 2) {
      const int32_t half = (left + 1) / 2;
      index += (values > look_up(codebook.highest + half - 1, index)) & half;
    }
    const Ints found = index - begin;
    store_found<coded>(y + i, values, coded ? found : found + channel * codebook.count, codebook.levels);
  }
  for (; i < n; ++i) y[i] = nearest<coded>(x[i], codebook.of(channels[i]));
}

inline void levels_row(const uint8_t* codes, int64_t stride, float* y, int64_t n, Codebook codebook) {
  for (int64_t i = 0; i < n; ++i) y[i] = level_of(codes[i * stride], codebook);
}

inline void levels_channels(const uint8_t* codes, int64_t stride, float* y, int64_t n, Codebook codebook,
                            const int32_t* channels) {
  for (int64_t i = 0; i < n; ++i) y[i] = level_of(codes[i * stride], codebook.of(channels[i]));
}
