// tensor_statistics on CUDA. Chunks are cut by the shape alone, a thread adds its elements in order, threads and chunks
// are joined in trees: the same bits every time. Between the two reads the mean stays on the device.
#include <torch/csrc/stable/library.h>

#include "../statistics.h"
#include "elementwise.cuh"

namespace pq {

namespace {

constexpr int64_t kChunk = 64 * kThreads;  // elements of one channel
constexpr int kTileChannels = 32, kTileRows = kThreads / kTileChannels;
constexpr int64_t kChunkOfRows = 64 * kTileRows;

// What the second read gathers; First is its counterpart of the first.
struct Second {
  double absolute = 0.0, square = 0.0;

  static __device__ Second of(float x, double mean) {
    const double centred = static_cast<double>(x) - mean;
    return {fabs(centred), centred * centred};
  }
  static __device__ Second read(const double* from, int64_t step) { return {from[0], from[step]}; }
  __device__ void add(const Second& other) {
    absolute += other.absolute;
    square += other.square;
  }
  __device__ void write(double* to, int64_t step) const {
    to[0] = absolute;
    to[step] = square;
  }
  __device__ void finish(double count, double* out, int64_t step) const {
    finish_second(absolute, square, count, out, step);
  }
};

// One element's contribution, and how many numbers a partial sum has.
struct FirstRead {
  using Sums = First;
  static constexpr int rows = kFirst;
  __device__ Sums of(float x, int64_t) const { return First::of(x); }
};
struct SecondRead {
  using Sums = Second;
  static constexpr int rows = kSecond;
  const double* mean;
  __device__ Sums of(float x, int64_t channel) const { return Second::of(x, mean[channel]); }
};

// Joins `count` threads' sums, `stride` threads apart, into the first's.
template <class Sums>
__device__ Sums join(Sums own, Sums* shared, int count, int stride) {
  shared[threadIdx.x] = own;
  __syncthreads();
  for (int half = count / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half * stride) shared[threadIdx.x].add(shared[threadIdx.x + half * stride]);
    __syncthreads();
  }
  return shared[threadIdx.x];
}

// A block a chunk of a channel. partial: [chunks, rows, channels].
template <class Read, class T>
__global__ void sum_chunks(Read read, const T* x, Layout layout, int64_t channels, int64_t channel_stride,
                           int64_t chunks, double* partial) {
  __shared__ typename Read::Sums shared[kThreads];
  const int64_t channel = blockIdx.x / chunks, chunk = blockIdx.x % chunks;
  typename Read::Sums sums;
  for (int k = 0; k < kChunk / kThreads; ++k) {
    const int64_t i = chunk * kChunk + k * kThreads + threadIdx.x;
    if (i >= layout.numel) break;
    int64_t inner;
    const int64_t offset = layout.dims == 1 ? i * layout.stride[kInput][0] : locate(layout, i, inner).offset[kInput];
    sums.add(read.of(static_cast<float>(x[channel * channel_stride + offset]), channel));
  }
  sums = join(sums, shared, kThreads, 1);
  if (threadIdx.x == 0) sums.write(partial + chunk * Read::rows * channels + channel, channels);
}

// Channels innermost: a block takes kTileChannels neighbours through a chunk of rows, kTileRows rows at a time.
template <class Read, class T>
__global__ void sum_rows(Read read, const T* x, int64_t rows, int64_t channels, int64_t tiles, double* partial) {
  __shared__ typename Read::Sums shared[kThreads];
  const int64_t chunk = blockIdx.x / tiles;
  const int64_t channel = blockIdx.x % tiles * kTileChannels + threadIdx.x % kTileChannels;
  typename Read::Sums sums;
  for (int k = 0; k < kChunkOfRows / kTileRows; ++k) {
    const int64_t row = chunk * kChunkOfRows + k * kTileRows + threadIdx.x / kTileChannels;
    if (row >= rows || channel >= channels) break;
    sums.add(read.of(static_cast<float>(x[row * channels + channel]), channel));
  }
  sums = join(sums, shared, kTileRows, kTileChannels);
  if (threadIdx.x < kTileChannels && channel < channels) {
    sums.write(partial + chunk * Read::rows * channels + channel, channels);
  }
}

// A block a channel: its chunks' sums to the rows of the result.
template <class Sums>
__global__ void join_chunks(const double* partial, int rows, int64_t channels, int64_t chunks, double count,
                            double* out) {
  __shared__ Sums shared[kThreads];
  const int64_t channel = blockIdx.x;
  Sums sums;
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    sums.add(Sums::read(partial + chunk * rows * channels + channel, channels));
  }
  sums = join(sums, shared, kThreads, 1);
  if (threadIdx.x == 0) sums.finish(count, out + channel, channels);
}

struct Walk {
  Layout layout;
  bool rows;
  int64_t channels, channel_stride, per_channel, chunks;
};

Walk make_walk(const Tensor& x, int64_t axis) {
  Walk walk;
  walk.channels = axis < 0 ? 1 : x.size(axis);
  walk.channel_stride = axis < 0 ? 0 : x.stride(axis);
  walk.per_channel = walk.channels ? x.numel() / walk.channels : 0;
  walk.layout = make_layout(x, nullptr, nullptr, axis, false);
  walk.rows = walk.layout.period > 0 && walk.layout.dims == 1 && walk.layout.stride[kInput][0] == 1;
  if (!walk.rows) walk.layout = make_layout(x, nullptr, nullptr, axis, false, /*skip_axis=*/true);
  const int64_t chunk = walk.rows ? kChunkOfRows : kChunk;
  walk.chunks = (walk.per_channel + chunk - 1) / chunk;
  return walk;
}

unsigned checked_blocks(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "the tensor is too large for one launch");
  return static_cast<unsigned>(blocks);
}

template <class T, class Read>
void run_read(const Read& read, const Tensor& x, const Walk& walk, double* partial, double* out) {
  const T* data = static_cast<const T*>(x.const_data_ptr());
  const cudaStream_t stream = current_stream(x);
  if (walk.chunks && walk.rows) {
    const int64_t tiles = (walk.channels + kTileChannels - 1) / kTileChannels;
    sum_rows<Read, T><<<checked_blocks(walk.chunks * tiles), kThreads, 0, stream>>>(read, data, walk.per_channel,
                                                                                    walk.channels, tiles, partial);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  } else if (walk.chunks) {
    sum_chunks<Read, T><<<checked_blocks(walk.chunks * walk.channels), kThreads, 0, stream>>>(
        read, data, walk.layout, walk.channels, walk.channel_stride, walk.chunks, partial);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  join_chunks<typename Read::Sums><<<checked_blocks(walk.channels), kThreads, 0, stream>>>(
      partial, Read::rows, walk.channels, walk.chunks, static_cast<double>(walk.per_channel), out);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor tensor_statistics(const Tensor& x, int64_t axis) {
  STD_TORCH_CHECK(axis >= -1 && axis < x.dim(), "axis must name a dimension of the tensor, or be -1");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Walk walk = make_walk(x, axis);
  const int64_t shape[] = {kStatistics, walk.channels}, size[] = {walk.chunks * kFirst * walk.channels};
  Tensor out = torch::stable::new_empty(x, {shape, axis < 0 ? 1u : 2u}, ScalarType::Double);
  if (walk.channels == 0) return out;
  const Tensor partial = torch::stable::new_empty(x, {size, 1}, ScalarType::Double);
  double* sums = static_cast<double*>(partial.mutable_data_ptr());
  double* rows = static_cast<double*>(out.mutable_data_ptr());
  with_float(x.scalar_type(), [&]<class T>() {
    run_read<T>(FirstRead{}, x, walk, sums, rows);
    run_read<T>(SecondRead{rows + kMeanOut * walk.channels}, x, walk, sums, rows);
  });
  return out;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CUDA, m) {
  m.impl("tensor_statistics", TORCH_BOX(&pq::tensor_statistics));
}
