// histogram on CUDA. A block counts a part of a channel in shared memory and adds it to the result: whole numbers, so
// that the order of blocks changes nothing.
#include <torch/csrc/stable/library.h>

#include "../histogram.h"
#include "elementwise.cuh"

namespace pq {

namespace {

constexpr int64_t kPerBlock = 256 * kThreads;  // elements of one channel, a block at the least
constexpr int64_t kSharedBins = 8192;          // of more, counts go to memory one by one

using Count = unsigned long long;

// Counts of the block's elements into `counts`; Counter is unsigned where they are shared, Count in memory.
template <class T, class Counter>
__device__ void count_part(const T* x, const Layout& layout, int64_t begin, int64_t end, Bins bins, Counter* counts) {
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    int64_t inner;
    const int64_t offset = layout.dims == 1 ? i * layout.stride[kInput][0] : locate(layout, i, inner).offset[kInput];
    atomicAdd(counts + entry_of(place_of<float, int32_t>(static_cast<float>(x[offset]), bins), bins.bins), Counter{1});
  }
}

template <class T, bool shares>
__global__ void count_channels(const T* x, Layout layout, int64_t channel_stride, int64_t parts, int64_t per_part,
                               const int64_t* exponent, int32_t bins, Count* rows) {
  extern __shared__ unsigned shared[];
  const int64_t channel = blockIdx.x / parts, begin = blockIdx.x % parts * per_part;
  const int64_t end = begin + per_part < layout.numel ? begin + per_part : layout.numel;
  const int entries = bins + kBesideBins;
  const Bins own{ldexpf(1.0f, static_cast<int>(-exponent[channel])), bins};
  Count* row = rows + channel * entries;
  const T* from = x + channel * channel_stride;
  if constexpr (!shares) {
    count_part(from, layout, begin, end, own, row);
  } else {
    for (int entry = threadIdx.x; entry < entries; entry += kThreads) shared[entry] = 0;
    __syncthreads();
    count_part(from, layout, begin, end, own, shared);
    __syncthreads();
    for (int entry = threadIdx.x; entry < entries; entry += kThreads) {
      if (shared[entry]) atomicAdd(row + entry, static_cast<Count>(shared[entry]));
    }
  }
}

template <class T>
void launch(const Tensor& x, const Layout& layout, int64_t axis, const int64_t* exponent, int32_t bins, Count* rows) {
  const int64_t channels = axis < 0 ? 1 : x.size(axis), stride = axis < 0 ? 0 : x.stride(axis);
  // As many blocks as keep a large GPU busy, and no part so large that 32 bits could not count it.
  const int64_t wanted = (layout.numel * channels + 2047) / 2048;
  const int64_t per_part = std::min<int64_t>(std::max(kPerBlock, wanted), int64_t{1} << 30);
  const int64_t parts = (layout.numel + per_part - 1) / per_part;
  const T* data = static_cast<const T*>(x.const_data_ptr());
  const unsigned blocks = blocks_for(channels * parts * kThreads);
  const cudaStream_t stream = current_stream(x);
  if (bins <= kSharedBins) {
    const size_t bytes = (bins + kBesideBins) * sizeof(unsigned);
    count_channels<T, true>
        <<<blocks, kThreads, bytes, stream>>>(data, layout, stride, parts, per_part, exponent, bins, rows);
  } else {
    count_channels<T, false>
        <<<blocks, kThreads, 0, stream>>>(data, layout, stride, parts, per_part, exponent, bins, rows);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor histogram(const Tensor& x, const Tensor& exponent, int64_t bins, int64_t axis) {
  check_histogram(x, exponent, bins, axis);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor rows = new_rows(x, axis < 0 ? 1 : x.size(axis), bins, axis);
  if (x.numel() == 0) return rows;
  const Layout layout = make_layout(x, nullptr, nullptr, axis, false, /*skip_axis=*/true);
  const Tensor each = torch::stable::contiguous(exponent);
  with_float(x.scalar_type(), [&]<class T>() {
    launch<T>(x, layout, axis, static_cast<const int64_t*>(each.const_data_ptr()), static_cast<int32_t>(bins),
              static_cast<Count*>(rows.mutable_data_ptr()));
  });
  return rows;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CUDA, m) { m.impl("histogram", TORCH_BOX(&pq::histogram)); }
