// histogram on CUDA. A block counts a part of a channel in shared memory and adds it to the result: whole numbers, so
// that the order of blocks changes nothing.

#include "../histogram.h"
#include "../ops.h"
#include "gather.cuh"

namespace pq {

namespace {

constexpr int64_t kPerBlock = 64 * kThreads;  // elements of one channel, a block at the least
constexpr int64_t kSharedBins = 8192;         // of more, counts go to memory one by one

using Count = unsigned long long;

// A thread's way of counting: zeros, of which a ReLU leaves many, by itself, all else where the block counts. Counter
// is unsigned where that is shared memory, Count in memory.
template <class Counter>
struct Counting {
  Bins bins;
  Counter* counts;
  unsigned zeros = 0;

  __device__ void add(float x) {
    const int32_t place = place_of<float, int32_t>(x, bins);
    if (place == bins.bins + 2) {
      ++zeros;
    } else {
      atomicAdd(counts + entry_of(place, bins.bins), Counter{1});
    }
  }
  __device__ void finish() {
    if (zeros) atomicAdd(counts + bins.bins, Counter{zeros});
  }
};

// The block's elements [begin, end): where they are neighbours, N an access and kAhead accesses under way.
template <class T, int N, class Counter>
__device__ void count_part(const T* x, const Layout& layout, int64_t begin, int64_t end, Bins bins, Counter* counts) {
  Counting<Counter> counting{bins, counts};
  if constexpr (N > 0) {
    for (int64_t turn = begin + threadIdx.x * N; turn < end; turn += kAhead * kThreads * N) {
      Pack<T, N> packs[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t i = turn + a * kThreads * N;
        if (i < end) packs[a] = load<N>(x + i, end - i < N ? static_cast<int>(end - i) : N);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
#pragma unroll
        for (int k = 0; k < N; ++k) {
          if (turn + a * kThreads * N + k < end) counting.add(static_cast<float>(packs[a].values[k]));
        }
      }
    }
  } else {
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      int64_t inner;
      const int64_t offset = layout.dims == 1 ? i * layout.stride[kInput][0] : locate(layout, i, inner).offset[kInput];
      counting.add(static_cast<float>(x[offset]));
    }
  }
  counting.finish();
}

template <class T, bool shares, int N>
__global__ void count_channels(const T* x, Layout layout, int64_t channel_stride, int64_t parts, int64_t per_part,
                               const int64_t* exponent, const float* largest, int32_t bins, Count* rows) {
  extern __shared__ unsigned shared[];
  const int64_t channel = blockIdx.x / parts, begin = blockIdx.x % parts * per_part;
  const int64_t end = begin + per_part < layout.numel ? begin + per_part : layout.numel;
  if (largest && !is_finite(largest[channel])) return;
  const int entries = bins + kBesideBins;
  const Bins own{ldexpf(1.0f, static_cast<int>(-exponent[channel])), bins};
  Count* row = rows + channel * entries;
  const T* from = x + channel * channel_stride;
  if constexpr (!shares) {
    count_part<T, N>(from, layout, begin, end, own, row);
  } else {
    for (int entry = threadIdx.x; entry < entries; entry += kThreads) shared[entry] = 0;
    __syncthreads();
    count_part<T, N>(from, layout, begin, end, own, shared);
    __syncthreads();
    for (int entry = threadIdx.x; entry < entries; entry += kThreads) {
      if (shared[entry]) atomicAdd(row + entry, static_cast<Count>(shared[entry]));
    }
  }
}

template <class T, int N>
void launch(const Tensor& x, const Layout& layout, int64_t axis, const int64_t* exponent, const float* largest,
            int32_t bins, Count* rows) {
  const int64_t channels = axis < 0 ? 1 : x.size(axis), stride = axis < 0 ? 0 : x.stride(axis);
  // As many blocks as keep a large GPU busy, and no part so large that 32 bits could not count it.
  const int64_t wanted = divided(divided(layout.numel * channels, kBlocks), kThreads) * kThreads;
  const int64_t per_part = std::min<int64_t>(std::max(kPerBlock, wanted), int64_t{1} << 30);
  const int64_t parts = divided(layout.numel, per_part);
  const T* data = static_cast<const T*>(x.const_data_ptr());
  const unsigned blocks = blocks_for(channels * parts * kThreads);
  const cudaStream_t stream = current_stream(x);
  if (bins <= kSharedBins) {
    const size_t bytes = (bins + kBesideBins) * sizeof(unsigned);
    count_channels<T, true, N>
        <<<blocks, kThreads, bytes, stream>>>(data, layout, stride, parts, per_part, exponent, largest, bins, rows);
  } else {
    count_channels<T, false, N>
        <<<blocks, kThreads, 0, stream>>>(data, layout, stride, parts, per_part, exponent, largest, bins, rows);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// Whether each channel is one run of neighbours that begins where an access of N elements may.
bool in_wide_runs(const Tensor& x, const Layout& layout, int64_t axis, int N) {
  const bool run = layout.dims == 0 || (layout.dims == 1 && layout.stride[kInput][0] == 1);
  return run && (axis < 0 || x.stride(axis) % N == 0) && aligned(x.const_data_ptr(), 16);
}

// A block a channel: its new width, and its counts so far on bins of that width.
__global__ void widen(const Count* before, const int64_t* narrow, const float* largest, int32_t bins, int64_t* wide,
                      Count* rows) {
  const int64_t channel = blockIdx.x;
  const int entries = bins + kBesideBins;
  const int64_t exponent = grown(narrow[channel], largest[channel], bins);
  if (threadIdx.x == 0) wide[channel] = exponent;
  for (int entry = threadIdx.x; entry < entries; entry += kThreads) {
    const Count counted = before[channel * entries + entry];
    if (counted) atomicAdd(rows + channel * entries + coarser(entry, exponent - narrow[channel], bins), counted);
  }
}

}  // namespace

void count_into(const Tensor& x, int64_t axis, const Tensor& exponent, const Tensor* largest, int64_t bins,
                const Tensor& rows) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Layout layout = make_layout(x, nullptr, nullptr, axis, false, /*skip_axis=*/true);
  const float* top = largest ? static_cast<const float*>(largest->const_data_ptr()) : nullptr;
  with_float(x.scalar_type(), [&]<class T>() {
    constexpr int N = 16 / sizeof(T);
    const auto run = in_wide_runs(x, layout, axis, N) ? launch<T, N> : launch<T, 0>;
    run(x, layout, axis, static_cast<const int64_t*>(exponent.const_data_ptr()), top, static_cast<int32_t>(bins),
        static_cast<Count*>(rows.mutable_data_ptr()));
  });
}

void widen_into(const Tensor& before, const Tensor& narrow, const Tensor& largest, int64_t bins, const Tensor& wide,
                const Tensor& rows) {
  const torch::stable::accelerator::DeviceGuard guard(narrow.get_device_index());
  widen<<<checked_blocks(narrow.numel()), kThreads, 0, current_stream(narrow)>>>(
      static_cast<const Count*>(before.const_data_ptr()), static_cast<const int64_t*>(narrow.const_data_ptr()),
      static_cast<const float*>(largest.const_data_ptr()), static_cast<int32_t>(bins),
      static_cast<int64_t*>(wide.mutable_data_ptr()), static_cast<Count*>(rows.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace pq
