// online_fake_quantize on the CPU: the tensor is read for its statistics, a grid is laid over them, and the tensor is
// put on it, in one call.

#include "../ops.h"

namespace pq {

OnlineGrid online_grid_of(const Tensor& x, const RangeRule& rule, int64_t qmin, int64_t qmax, int64_t axis) {
  const Tensor statistics = statistics_of(x, axis, rule.spread != Spread::none);
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

}  // namespace pq
