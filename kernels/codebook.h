// The codebook quantizer: levels that are a sorted list. Its arguments, their checks, and the scalar formulas that
// every backend computes with.
#pragma once

#include "arguments.h"

namespace pq {

constexpr int64_t kMaxLevels = 256;  // their indices are uint8

// A channel's levels and, of each but the last, the highest value that still goes to it; both ascending.
struct Codebook {
  const float *levels, *highest;  // one of them is null where an op needs but the other
  int32_t count;

  PQ_INLINE Codebook of(int64_t channel) const {
    return {levels ? levels + channel * count : nullptr, highest ? highest + channel * (count - 1) : nullptr, count};
  }
};

// How many entries of `highest` are below x, by a binary search: none for NaN, never more than there are. A step that
// isn't taken leaves an entry too many to look at, which changes nothing; a mask, as a branch would often go wrong.
PQ_INLINE int32_t level_index(float x, Codebook codebook) {
  int32_t index = 0;
  for (int32_t left = codebook.count - 1; left > 0; left /= 2) {
    const int32_t half = (left + 1) / 2;
    index += half & -static_cast<int32_t>(x > codebook.highest[index + half - 1]);
  }
  return index;
}

PQ_INLINE float nearest_level(float x, Codebook codebook) {
  return x != x ? x : codebook.levels[level_index(x, codebook)];
}

// NaN has no code: it takes that of zero.
PQ_INLINE float without_nan(float x) { return x != x ? 0.0f : x; }

// A code that has no level gives NaN: it must not read what lies behind them.
PQ_INLINE float level_of(uint8_t code, Codebook codebook) {
  return code < codebook.count ? codebook.levels[code] : NAN;
}

// What ops/ has checked, for those who call the raw ops: a wrong shape or type must not read foreign memory.
inline void check_table(const Tensor& x, const Tensor& table, const char* name, int64_t least, int64_t axis) {
  check_axis(x, axis);
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float, name, " must be float32");
  STD_TORCH_CHECK(table.device() == x.device(), name, " must be on the tensor's device");
  STD_TORCH_CHECK(table.dim() == (axis < 0 ? 1 : 2), name, " must have one dimension, per channel two");
  STD_TORCH_CHECK(axis < 0 || table.size(0) == x.size(axis), name, " must have one row a channel");
  const int64_t entries = table.size(table.dim() - 1), most = kMaxLevels - 1 + least;
  STD_TORCH_CHECK(entries >= least && entries <= most, name, " must have ", least, " to ", most, " entries");
}

inline void check_levels(const Tensor& x, const Tensor& levels, int64_t axis) {
  check_table(x, levels, "levels", 1, axis);
}

inline void check_highest(const Tensor& x, const Tensor& highest, int64_t axis) {
  check_table(x, highest, "highest", 0, axis);
}

inline void check_codebook(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis) {
  check_levels(x, levels, axis);
  check_highest(x, highest, axis);
  STD_TORCH_CHECK(levels.size(levels.dim() - 1) == highest.size(highest.dim() - 1) + 1,
                  "highest must have an entry for each level but the last");
}

inline const float* entries(const Tensor& table) { return static_cast<const float*>(table.const_data_ptr()); }

inline int32_t levels_of(const Tensor& highest) { return static_cast<int32_t>(highest.size(highest.dim() - 1) + 1); }

}  // namespace pq
