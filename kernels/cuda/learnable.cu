// The gradients of fake_quantize where scale and zero point are learned (LSQ, LSQ+) on CUDA, in one pass.

#include "../ops.h"
#include "gather.cuh"

namespace pq {

namespace {

// Σ g·slope and Σ outside. The product of two float32 is exact in float64, so an FMA rounds what it and a sum would.
struct LearnedSums {
  double slope = 0.0, outside = 0.0;

  static __device__ LearnedSums read(const double* from, int64_t step) { return {from[0], from[step]}; }
  __device__ void add(const LearnedSums& other) {
    slope += other.slope;
    outside += other.outside;
  }
  __device__ void write(double* to, int64_t step) const {
    to[0] = slope;
    to[step] = outside;
  }
  __device__ LearnedSums sums() const { return *this; }
};

struct LearnedRead {
  using Sums = LearnedSums;
  using State = LearnedSums;
  static constexpr int rows = 2;
  static constexpr bool reads_second = true, writes = true;
  DeviceGrids grids;

  struct Local {
    Grid grid;
    __device__ float add(LearnedSums& state, float x, float g) const {
      const Learned one = learned(g, x, grid);
      state.slope = fma(static_cast<double>(g), static_cast<double>(one.slope), state.slope);
      state.outside += static_cast<double>(one.outside);
      return one.dx;
    }
  };
  __device__ Local of(int64_t channel) const { return {grids.at(channel)}; }
};

struct FinishLearned {
  DeviceGrids grids;
  double grad_scale;
  float *ds, *dz;
  __device__ void operator()(int64_t channel, const LearnedSums& sums) const {
    const double s = grids.at(channel).scale;
    ds[channel] = static_cast<float>(grad_scale * sums.slope);
    dz[channel] = static_cast<float>(grad_scale * (-s * sums.outside));
  }
};

}  // namespace

void learned_gradients_into(const Tensor& grad, const Tensor& x, const GridArguments& arguments, double grad_scale,
                            const Tensor& dx, const Tensor& ds, const Tensor& dz) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Gather gather = make_gather(x, &grad, &dx, arguments.axis);
  const Tensor room = room_for_sums(x, gather, LearnedRead::rows);
  const DeviceGrids grids(arguments);
  const FinishLearned finish{grids, grad_scale, static_cast<float*>(ds.mutable_data_ptr()),
                             static_cast<float*>(dz.mutable_data_ptr())};
  with_float(x.scalar_type(), [&]<class T>() {
    run_gather<LearnedRead, T>({grids}, finish, gather, x, &grad, &dx, static_cast<double*>(room.mutable_data_ptr()));
  });
}

}  // namespace pq
