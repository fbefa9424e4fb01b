// What every op of the uniform quantizer is given besides its tensors, and the dispatch from values to templates.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <array>
#include <cstdint>

#include "histogram.h"
#include "layout.h"
#include "quantize.h"
#include "range.h"

namespace pq {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct GridArguments {
  const Tensor& scale;
  const Tensor& zero_point;  // int32, or float32 where it is being learned
  float qmin, qmax;
  int64_t axis;  // -1: per tensor
  Rounding rounding;
  Random random;  // counter of the first element

  bool stochastic() const { return rounding == Rounding::stochastic; }
};

inline GridArguments grid_arguments(const Tensor& scale, const Tensor& zero_point, int64_t qmin, int64_t qmax,
                                    int64_t axis, int64_t rounding, int64_t seed, int64_t offset) {
  STD_TORCH_CHECK(rounding >= 0 && rounding <= 2, "rounding must be 0, 1 or 2, got ", rounding);
  return {scale,
          zero_point,
          static_cast<float>(qmin),
          static_cast<float>(qmax),
          axis,
          static_cast<Rounding>(rounding),
          {static_cast<uint64_t>(seed), static_cast<uint64_t>(offset)}};
}

inline void check_like(const Tensor& x, const Tensor& other, const char* name) {
  bool same = x.dim() == other.dim() && x.scalar_type() == other.scalar_type() && x.device() == other.device();
  for (int64_t d = 0; same && d < x.dim(); ++d) same = x.size(d) == other.size(d);
  STD_TORCH_CHECK(same, name, " must have the input's shape, dtype and device");
}

// What comes before the quantizer in one pass with it: an addition, rounded to the tensors' type, and a ReLU.
struct Before {
  bool adds, relu;
};

// visit.operator()<B>() with it as a template argument.
template <class Visit>
void with_before(Before before, const Visit& visit) {
  if (before.adds) {
    before.relu ? visit.template operator()<Before{true, true}>() : visit.template operator()<Before{true, false}>();
  } else {
    before.relu ? visit.template operator()<Before{false, true}>() : visit.template operator()<Before{false, false}>();
  }
}

inline RangeRule range_rule(int64_t spread, double reach, int64_t support, double ceiling, bool symmetric,
                            int64_t qmin) {
  STD_TORCH_CHECK(spread >= 0 && spread <= 2 && support >= 0 && support <= 2, "spread and support must be 0, 1 or 2");
  STD_TORCH_CHECK(reach >= 0 && reach < INFINITY && ceiling > 0, "reach must be finite and 0 or more, ceiling above 0");
  STD_TORCH_CHECK(!symmetric || qmin < 0, "a symmetric grid must be signed here");
  return {static_cast<Spread>(spread), static_cast<Support>(support), reach, ceiling, symmetric};
}

// What ops/ has checked, for those who call the raw ops: a wrong shape or type must not read foreign memory.
inline void check_axis(const Tensor& x, int64_t axis) {
  STD_TORCH_CHECK(axis >= -1 && axis < x.dim(), "axis must name a dimension of the tensor, or be -1");
}

inline void check_values(const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  const bool known = dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  STD_TORCH_CHECK(known, "the tensor must be float32, float16 or bfloat16");
}

inline void check_codes(ScalarType dtype) {
  const bool integer =
      dtype == ScalarType::Byte || dtype == ScalarType::Char || dtype == ScalarType::Short || dtype == ScalarType::Int;
  STD_TORCH_CHECK(integer, "codes must be int8, uint8, int16 or int32");
}

inline void check_grid(const Tensor& x, const Tensor& scale, const Tensor& zero_point, int64_t axis) {
  check_axis(x, axis);
  const int64_t channels = axis < 0 ? 1 : x.size(axis);
  for (const Tensor* parameter : {&scale, &zero_point}) {
    STD_TORCH_CHECK(parameter->numel() == channels, "scale and zero_point must have one element a channel");
    STD_TORCH_CHECK(parameter->device() == x.device(), "scale and zero_point must be on the tensor's device");
  }
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float, "scale must be float32");
  const ScalarType type = zero_point.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Float, "zero_point must be int32 or float32");
}

// Refuse an output that shares memory with what is still read when parts of it are written.
inline void check_unread(const Tensor& read, const Tensor& out) {
  check_output(read, out);
  STD_TORCH_CHECK(read.numel() == 0 || read.const_data_ptr() != out.const_data_ptr(),
                  "the output must not be an input");
}

// The gradients of what is learned: ds and dz, each like its parameter.
inline void check_learned(const Tensor& scale, const Tensor& zero_point, const Tensor& dx, const Tensor& ds,
                          const Tensor& dz) {
  check_like(scale, ds, "the scale's gradient");
  check_like(scale, dz, "the zero point's gradient");
  STD_TORCH_CHECK(zero_point.scalar_type() == ScalarType::Float, "a zero point that is learned must be float32");
  STD_TORCH_CHECK(is_dense(ds) && is_dense(dz), "the gradients of scale and zero_point must be dense");
  STD_TORCH_CHECK(lie_apart(ds, dz) && lie_apart(dx, ds) && lie_apart(dx, dz), "the gradients must not overlap");
}

inline void check_histogram(const Tensor& x, const Tensor& exponent, int64_t bins, int64_t axis) {
  check_axis(x, axis);
  STD_TORCH_CHECK(bins >= 2 && bins <= kMaxBins && (bins & (bins - 1)) == 0, "bins must be a power of two, 2 to 2^24");
  STD_TORCH_CHECK(exponent.scalar_type() == ScalarType::Long, "exponent must be int64");
  STD_TORCH_CHECK(exponent.numel() == (axis < 0 ? 1 : x.size(axis)), "exponent must have one element a channel");
  STD_TORCH_CHECK(exponent.device() == x.device(), "exponent must be on the tensor's device");
}

inline void check_growing(const Tensor& x, const Tensor& largest, const Tensor& counts, const Tensor& exponent,
                          int64_t axis) {
  STD_TORCH_CHECK(counts.dim() >= 1, "counts must have a dimension of bins + 2 entries");
  const int64_t bins = counts.size(counts.dim() - 1) - kBesideBins;
  check_histogram(x, exponent, bins, axis);
  const int64_t channels = axis < 0 ? 1 : x.size(axis);
  STD_TORCH_CHECK(counts.scalar_type() == ScalarType::Long && counts.device() == x.device() &&
                      counts.numel() == channels * (bins + kBesideBins),
                  "counts must be int64 on the tensor's device, a row a channel");
  STD_TORCH_CHECK(
      largest.scalar_type() == ScalarType::Float && largest.device() == x.device() && largest.numel() == channels,
      "largest must be float32 on the tensor's device, one element a channel");
}

// Zeroed counts, int64: a row a channel, or one alone where axis is -1.
inline Tensor new_rows(const Tensor& x, int64_t channels, int64_t bins, int64_t axis) {
  const int64_t shape[] = {channels, bins + kBesideBins};
  const int skipped = axis < 0 ? 1 : 0;
  return torch::stable::new_zeros(x, {shape + skipped, static_cast<size_t>(2 - skipped)}, ScalarType::Long);
}

// aten::empty_like with a dtype, which the stable header's own version leaves out; keeps the memory format.
inline Tensor empty_like(const Tensor& x, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{from(x),
                                    from(std::optional<ScalarType>(dtype)),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt),
                                    from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// visit.operator()<R>() with the rounding as a template argument.
template <class Visit>
void with_rounding(Rounding rounding, const Visit& visit) {
  switch (rounding) {
    case Rounding::half_even: return visit.template operator()<Rounding::half_even>();
    case Rounding::half_away: return visit.template operator()<Rounding::half_away>();
    case Rounding::stochastic: return visit.template operator()<Rounding::stochastic>();
  }
}

inline int64_t parameter_stride(const Tensor& parameter) { return parameter.dim() ? parameter.stride(0) : 0; }

}  // namespace pq
