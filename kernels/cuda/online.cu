// online_fake_quantize on CUDA: statistics, grid and result, one behind the other on the stream; nothing is waited for.

#include "../ops.h"
#include "elementwise.cuh"

namespace pq {

namespace {

// A thread a channel. rows: its statistics, `channels` apart.
__global__ void choose_grids(const double* rows, int64_t channels, RangeRule rule, double qmin, double qmax,
                             float* scale, int32_t* zero_point) {
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (channel >= channels) return;
  const ScaleAndZeroPoint found = online_grid(rows + channel, channels, rule, qmin, qmax);
  scale[channel] = found.scale;
  zero_point[channel] = found.zero_point;
}

}  // namespace

OnlineGrid online_grid_of(const Tensor& x, const RangeRule& rule, int64_t qmin, int64_t qmax, int64_t axis) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor statistics = statistics_of(x, axis, rule.spread != Spread::none);
  const int64_t channels = axis < 0 ? 1 : x.size(axis), dims = axis < 0 ? 0 : 1;
  const torch::headeronly::IntHeaderOnlyArrayRef shape(&channels, dims);
  OnlineGrid grid{torch::stable::new_empty(x, shape, ScalarType::Float),
                  torch::stable::new_empty(x, shape, ScalarType::Int)};
  if (channels == 0) return grid;
  choose_grids<<<blocks_for(channels), kThreads, 0, current_stream(x)>>>(
      static_cast<const double*>(statistics.const_data_ptr()), channels, rule, static_cast<double>(qmin),
      static_cast<double>(qmax), static_cast<float*>(grid.scale.mutable_data_ptr()),
      static_cast<int32_t*>(grid.zero_point.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return grid;
}

}  // namespace pq
