// online_fake_quantize on the CPU: the tensor is read for its statistics, a grid is laid over them, and the tensor is
// put on it, in one call.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../ops.h"

namespace pq {

namespace {

struct OnlineGrid {
  Tensor scale, zero_point;
};

OnlineGrid choose_grid(const Tensor& x, const RangeRule& rule, int64_t qmin, int64_t qmax, int64_t axis) {
  const Tensor statistics = statistics_of(x, axis);
  const int64_t channels = axis < 0 ? 1 : x.size(axis), dims = axis < 0 ? 0 : 1;
  const torch::headeronly::IntHeaderOnlyArrayRef shape(&channels, dims);
  OnlineGrid grid{torch::stable::new_empty(x, shape, ScalarType::Float),
                  torch::stable::new_empty(x, shape, ScalarType::Int)};
  const double* rows = static_cast<const double*>(statistics.const_data_ptr());
  float* scale = static_cast<float*>(grid.scale.mutable_data_ptr());
  int32_t* zero_point = static_cast<int32_t*>(grid.zero_point.mutable_data_ptr());
  for (int64_t c = 0; c < channels; ++c) {
    const ScaleAndZeroPoint found =
        online_grid(rows + c, channels, rule, static_cast<double>(qmin), static_cast<double>(qmax));
    scale[c] = found.scale;
    zero_point[c] = found.zero_point;
  }
  return grid;
}

std::tuple<Tensor, Tensor> online_fake_quantize_out(const Tensor& x, bool relu, int64_t spread, double reach,
                                                    int64_t support, double ceiling, bool symmetric, int64_t qmin,
                                                    int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                                                    int64_t offset, const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  const auto [scale, zero_point] =
      choose_grid(x, range_rule(spread, reach, support, ceiling, symmetric, qmin), qmin, qmax, axis);
  fake_quantize_into(x, nullptr, relu, grid_arguments(scale, zero_point, qmin, qmax, axis, rounding, seed, offset),
                     out);
  return {scale, zero_point};
}

std::tuple<Tensor, Tensor, Tensor> online_fake_quantize(const Tensor& x, bool relu, int64_t spread, double reach,
                                                        int64_t support, double ceiling, bool symmetric, int64_t qmin,
                                                        int64_t qmax, int64_t axis, int64_t rounding, int64_t seed,
                                                        int64_t offset) {
  Tensor y = torch::stable::empty_like(x);
  const auto [scale, zero_point] = online_fake_quantize_out(x, relu, spread, reach, support, ceiling, symmetric, qmin,
                                                            qmax, axis, rounding, seed, offset, y);
  return {y, scale, zero_point};
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CPU, m) {
  m.impl("online_fake_quantize", TORCH_BOX(&pq::online_fake_quantize));
  m.impl("online_fake_quantize_out", TORCH_BOX(&pq::online_fake_quantize_out));
}
