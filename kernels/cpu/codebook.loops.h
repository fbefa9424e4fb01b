// The nearest level of each value of a row, or its index. Included once an instruction set by each_isa.h. y may be x.
// coded: NaN is taken for zero, and the levels are their own indices.

using Floats = float __attribute__((vector_size(kRegister * sizeof(float))));
// As it lies in a row: of a copy by memcpy the compiler makes several narrow ones.
using RowFloats = float __attribute__((vector_size(kRegister * sizeof(float)), aligned(sizeof(float)), may_alias));

constexpr int kTogether = 4;        // registers of values that meet a level at once: it is read once for them all
constexpr int64_t kSearched = 256;  // values that are searched for side by side

// Not Floats{} + number: that would make +0 of -0.
inline Floats in_each_lane(float number) { return number - Floats{}; }

// Every value meets all levels in ascending order and keeps the last whose threshold it is above: no index, no gather.
template <bool coded, int registers>
inline void meet_levels(const float* x, float* y, Codebook codebook) {
  Floats values[registers], kept[registers];
  PQ_UNROLLED
  for (int r = 0; r < registers; ++r) {
    values[r] = *reinterpret_cast<const RowFloats*>(x + r * kRegister);
    if (coded) values[r] = values[r] == values[r] ? values[r] : Floats{};
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
    if (!coded) kept[r] = values[r] == values[r] ? kept[r] : values[r];
    *reinterpret_cast<RowFloats*>(y + r * kRegister) = kept[r];
  }
}

// For few levels.
template <bool coded>
void select_row(const float* x, float* y, int64_t n, Codebook codebook) {
  constexpr int64_t kBlock = kTogether * kRegister;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) meet_levels<coded, kTogether>(x + i, y + i, codebook);
  for (; i + kRegister <= n; i += kRegister) meet_levels<coded, 1>(x + i, y + i, codebook);
  if (i == n) return;
  float rest[kRegister] = {};
  __builtin_memcpy(rest, x + i, (n - i) * sizeof(float));
  meet_levels<coded, 1>(rest, rest, codebook);
  __builtin_memcpy(y + i, rest, (n - i) * sizeof(float));
}

// For many levels: a binary search, step by step for many values, so that no step waits for the one before.
template <bool coded>
void search_row(const float* x, float* y, int64_t n, Codebook codebook) {
  alignas(64) int32_t index[kSearched];
  [[maybe_unused]] const float* levels = codebook.levels;
  const float* highest = codebook.highest;
  for (int64_t at = 0; at < n; at += kSearched, x += kSearched, y += kSearched) {
    const int64_t many = n - at < kSearched ? n - at : kSearched;
    for (int64_t i = 0; i < many; ++i) index[i] = 0;
    int32_t left = codebook.count - 1;
    for (; left > 1; left -= left / 2) {
      PQ_INDEPENDENT
      for (int64_t i = 0; i < many; ++i) index[i] = step_up(coded ? without_nan(x[i]) : x[i], highest, index[i], left / 2);
    }
    PQ_INDEPENDENT
    for (int64_t i = 0; i < many; ++i) {
      index[i] = step_up(coded ? without_nan(x[i]) : x[i], highest, index[i], 1);
      y[i] = coded ? static_cast<float>(index[i]) : x[i] != x[i] ? x[i] : levels[index[i]];
    }
  }
}

// Channels innermost: channel i % channels has its own levels.
template <bool coded>
void search_channels(const float* x, float* y, int64_t n, Codebook codebook, int64_t channel, int64_t channels) {
  for (int64_t i = 0; i < n; ++i) {
    const Codebook own = codebook.of(channel);
    y[i] = coded ? static_cast<float>(level_index(without_nan(x[i]), own)) : nearest_level(x[i], own);
    channel = channel + 1 == channels ? 0 : channel + 1;
  }
}

inline void levels_row(const uint8_t* codes, int64_t stride, float* y, int64_t n, Codebook codebook) {
  for (int64_t i = 0; i < n; ++i) y[i] = level_of(codes[i * stride], codebook);
}

inline void levels_channels(const uint8_t* codes, int64_t stride, float* y, int64_t n, Codebook codebook,
                            int64_t channel, int64_t channels) {
  for (int64_t i = 0; i < n; ++i) {
    y[i] = level_of(codes[i * stride], codebook.of(channel));
    channel = channel + 1 == channels ? 0 : channel + 1;
  }
}
