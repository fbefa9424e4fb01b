// tensor_statistics on CUDA, in two reads; between them the mean stays on the device.

#include "../ops.h"
#include "../statistics.h"
#include "gather.cuh"

namespace pq {

namespace {

// NaN wins, in one instruction.
__device__ float least(float a, float b) {
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
}
__device__ float most(float a, float b) {
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
}

// A thread's part of the first read. The square of a float32 is exact in float64, so an FMA rounds what a product and a
// sum would.
struct FirstState {
  double sum = 0.0, positive_sum = 0.0, positive_square = 0.0;
  float low = INFINITY, high = -INFINITY;
  unsigned positive_count = 0;

  __device__ First sums() const {
    return {sum, positive_sum, positive_square, static_cast<double>(positive_count), low, high};
  }
};

struct FirstRead {
  using Sums = First;
  using State = FirstState;
  static constexpr int rows = kFirst;
  static constexpr bool reads_second = false, writes = false;

  struct Local {
    __device__ float add(FirstState& state, float x, float) const {
      const double v = x;
      state.sum += v;
      state.low = least(state.low, x);
      state.high = most(state.high, x);
      if (x > 0.0f) {
        state.positive_sum += v;
        state.positive_square = fma(v, v, state.positive_square);
        ++state.positive_count;
      }
      return 0.0f;
    }
  };
  __device__ Local of(int64_t) const { return {}; }
};

// What the second read gathers; First is its counterpart of the first.
struct Second {
  double absolute = 0.0, square = 0.0;

  static __device__ Second read(const double* from, int64_t step) { return {from[0], from[step]}; }
  __device__ void add(const Second& other) {
    absolute += other.absolute;
    square += other.square;
  }
  __device__ void write(double* to, int64_t step) const {
    to[0] = absolute;
    to[step] = square;
  }
  __device__ Second sums() const { return *this; }
};

struct SecondRead {
  using Sums = Second;
  using State = Second;
  static constexpr int rows = kSecond;
  static constexpr bool reads_second = false, writes = false;
  const double* mean;

  struct Local {
    double mean;
    __device__ float add(Second& state, float x, float) const {
      const double centred = static_cast<double>(x) - mean;
      state.add({fabs(centred), centred * centred});
      return 0.0f;
    }
  };
  __device__ Local of(int64_t channel) const { return {mean[channel]}; }
};

struct FinishFirst {
  double count, *out;
  int64_t channels;
  __device__ void operator()(int64_t channel, const First& sums) const { sums.finish(count, out + channel, channels); }
};

struct FinishSecond {
  double count, *out;
  int64_t channels;
  __device__ void operator()(int64_t channel, const Second& sums) const {
    finish_second(sums.absolute, sums.square, count, out + channel, channels);
  }
};

}  // namespace

Tensor statistics_of(const Tensor& x, int64_t axis, bool spread) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Gather gather = make_gather(x, nullptr, nullptr, axis);
  const int64_t shape[] = {kStatistics, gather.channels};
  Tensor out = torch::stable::new_empty(x, {shape, axis < 0 ? 1u : 2u}, ScalarType::Double);
  const Tensor room = room_for_sums(x, gather, kFirst);
  double* partial = static_cast<double*>(room.mutable_data_ptr());
  double* rows = static_cast<double*>(out.mutable_data_ptr());
  const double count = static_cast<double>(gather.per_channel);
  with_float(x.scalar_type(), [&]<class T>() {
    const FinishFirst first{count, rows, gather.channels};
    run_gather<FirstRead, T>({}, first, gather, x, nullptr, nullptr, partial);
    if (!spread) return;
    const FinishSecond second{count, rows, gather.channels};
    run_gather<SecondRead, T>({rows + kMeanOut * gather.channels}, second, gather, x, nullptr, nullptr, partial);
  });
  return out;
}

}  // namespace pq
