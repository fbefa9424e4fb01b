// The CUDA driver of ops that gather sums of a tensor, per tensor or per channel, and may write another on the way.
// A tensor is cut by its shape alone, a thread adds its elements in order, threads and chunks are joined in trees: the
// same bits every time. What is gathered is the op's own file's business:
//
//   struct Op {
//     using Sums = …;                        // add(Sums), static read(from, step), write(to, step)
//     static constexpr int rows = …;         // numbers in a Sums
//     static constexpr bool reads_second, writes;
//     __device__ Local of(int64_t channel);  // Local: add(State&, x, second) returns what is written
//     using State = …;                       // a thread's sums on the way; sums() makes Sums of it
//   };
#pragma once

#include "elementwise.cuh"

namespace pq {

constexpr int kAhead = 4;              // accesses a thread has under way
constexpr int64_t kBlocks = 16 * 132;  // chunks of a large tensor: a whole number of turns on the largest GPUs
constexpr int64_t kLeastChunk = 4096;  // elements
constexpr int kTileChannels = 32, kTileRows = kThreads / kTileChannels;

// One of three ways through a tensor: `rows`, channels innermost and dense; `runs`, a channel's elements lie in runs of
// neighbours, each cut into pieces; else element by element through the nest.
struct Gather {
  Layout layout;
  bool rows, runs;
  int64_t channels, per_channel, chunks;
  int64_t channel_stride[kTracks];
  int64_t run, pieces, piece;  // of runs; elsewhere a chunk is `piece` elements or rows
};

inline int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

// second, output: what else is read and written, or null.
inline Gather make_gather(const Tensor& x, const Tensor* second, const Tensor* output, int64_t axis) {
  Gather g;
  g.channels = axis < 0 ? 1 : x.size(axis);
  g.per_channel = g.channels ? x.numel() / g.channels : 0;
  const Tensor* tensors[] = {&x, second, output};
  const auto in_order = [&](int dims) {
    bool all = g.layout.dims == dims || (dims < 0 && g.layout.dims > 0);
    for (const int t : {kInput, kGradient, kOutput}) {
      all = all && (!tensors[t] || g.layout.stride[t][g.layout.dims - 1] == 1);
    }
    return all;
  };
  g.layout = make_layout(x, second, output, axis, false);
  g.rows = g.layout.period > 0 && in_order(1);
  if (!g.rows) g.layout = make_layout(x, second, output, axis, false, /*skip_axis=*/true);
  for (const int t : {kInput, kGradient, kOutput}) {
    g.channel_stride[t] = axis < 0 || !tensors[t] ? 0 : tensors[t]->stride(axis);
  }
  const int64_t chunk = std::max(kLeastChunk, divided(x.numel(), kBlocks));
  g.run = g.layout.dims ? g.layout.size[g.layout.dims - 1] : 1;
  g.runs = !g.rows && in_order(-1) && g.run >= kThreads;
  g.pieces = divided(std::max<int64_t>(g.run, 1), chunk);
  constexpr int64_t kWhole = 16;  // elements in the widest access, of the narrowest type
  g.piece = g.runs ? divided(divided(g.run, g.pieces), kWhole) * kWhole
                   : (g.rows ? std::max<int64_t>(kTileRows, chunk / kTileChannels) : chunk);
  g.chunks = g.runs ? (g.per_channel ? g.per_channel / g.run * g.pieces : 0) : divided(g.per_channel, g.piece);
  return g;
}

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

template <class T>
struct Tracks {
  const T *x, *second;
  T* y;
};

// A block a piece of a run of a channel, N elements an access, kAhead of them issued before any is used.
// partial: [chunks, rows, channels].
template <class Op, class T, int N>
__global__ void __launch_bounds__(kThreads) gather_runs(Op op, Tracks<T> tensors, Gather g, double* partial) {
  __shared__ typename Op::Sums shared[kThreads];
  const int64_t channel = blockIdx.x % g.channels, chunk = blockIdx.x / g.channels;
  const int64_t begin = chunk % g.pieces * g.piece, end = begin + g.piece < g.run ? begin + g.piece : g.run;
  int64_t inner;
  const Position at = locate(g.layout, chunk / g.pieces * g.run, inner);
  const T* x = tensors.x + at.offset[kInput] + channel * g.channel_stride[kInput];
  const T* second =
      Op::reads_second ? tensors.second + at.offset[kGradient] + channel * g.channel_stride[kGradient] : nullptr;
  T* y = Op::writes ? tensors.y + at.offset[kOutput] + channel * g.channel_stride[kOutput] : nullptr;
  const auto local = op.of(channel);
  typename Op::State state;
  for (int64_t turn = begin + threadIdx.x * N; turn < end; turn += kAhead * kThreads * N) {
    Pack<T, N> xs[kAhead], seconds[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t i = turn + a * kThreads * N;
      if (i >= end) continue;
      xs[a] = *reinterpret_cast<const Pack<T, N>*>(x + i);
      if constexpr (Op::reads_second) seconds[a] = *reinterpret_cast<const Pack<T, N>*>(second + i);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t i = turn + a * kThreads * N;
      if (i >= end) continue;
      Pack<T, N> ys;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float other = Op::reads_second ? static_cast<float>(seconds[a].values[k]) : 0.0f;
        ys.values[k] = static_cast<T>(local.add(state, static_cast<float>(xs[a].values[k]), other));
      }
      if constexpr (Op::writes) *reinterpret_cast<Pack<T, N>*>(y + i) = ys;
    }
  }
  const typename Op::Sums sums = join(state.sums(), shared, kThreads, 1);
  if (threadIdx.x == 0) sums.write(partial + chunk * Op::rows * g.channels + channel, g.channels);
}

// A block a chunk of a channel, an element an access, wherever they lie.
template <class Op, class T>
__global__ void __launch_bounds__(kThreads) gather_strided(Op op, Tracks<T> tensors, Gather g, double* partial) {
  __shared__ typename Op::Sums shared[kThreads];
  const int64_t channel = blockIdx.x % g.channels, chunk = blockIdx.x / g.channels;
  const int64_t begin = chunk * g.piece, end = begin + g.piece < g.per_channel ? begin + g.piece : g.per_channel;
  const auto local = op.of(channel);
  typename Op::State state;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    int64_t inner;
    const Position at = locate(g.layout, i, inner);
    const float x = static_cast<float>(tensors.x[at.offset[kInput] + channel * g.channel_stride[kInput]]);
    float other = 0.0f;
    if constexpr (Op::reads_second) {
      other = static_cast<float>(tensors.second[at.offset[kGradient] + channel * g.channel_stride[kGradient]]);
    }
    const float y = local.add(state, x, other);
    if constexpr (Op::writes) {
      tensors.y[at.offset[kOutput] + channel * g.channel_stride[kOutput]] = static_cast<T>(y);
    }
  }
  const typename Op::Sums sums = join(state.sums(), shared, kThreads, 1);
  if (threadIdx.x == 0) sums.write(partial + chunk * Op::rows * g.channels + channel, g.channels);
}

// Channels innermost: a block takes kTileChannels neighbours through a chunk of rows, kTileRows rows at a time.
template <class Op, class T>
__global__ void __launch_bounds__(kThreads)
    gather_rows(Op op, Tracks<T> tensors, Gather g, int64_t tiles, double* partial) {
  __shared__ typename Op::Sums shared[kThreads];
  const int64_t chunk = blockIdx.x / tiles;
  const int64_t channel = blockIdx.x % tiles * kTileChannels + threadIdx.x % kTileChannels;
  const int64_t begin = chunk * g.piece, end = begin + g.piece < g.per_channel ? begin + g.piece : g.per_channel;
  typename Op::State state;
  if (channel < g.channels) {
    const auto local = op.of(channel);
#pragma unroll 4
    for (int64_t row = begin + threadIdx.x / kTileChannels; row < end; row += kTileRows) {
      const int64_t i = row * g.channels + channel;
      const float other = Op::reads_second ? static_cast<float>(tensors.second[i]) : 0.0f;
      const float y = local.add(state, static_cast<float>(tensors.x[i]), other);
      if constexpr (Op::writes) tensors.y[i] = static_cast<T>(y);
    }
  }
  const typename Op::Sums sums = join(state.sums(), shared, kTileRows, kTileChannels);
  if (threadIdx.x < kTileChannels && channel < g.channels) {
    sums.write(partial + chunk * Op::rows * g.channels + channel, g.channels);
  }
}

// A block a channel: its chunks' sums together, handed to finish(channel, sums).
template <class Sums, class Finish>
__global__ void __launch_bounds__(kThreads)
    join_chunks(const double* partial, int rows, int64_t channels, int64_t chunks, Finish finish) {
  __shared__ Sums shared[kThreads];
  const int64_t channel = blockIdx.x;
  Sums sums;
#pragma unroll 4
  for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    sums.add(Sums::read(partial + chunk * rows * channels + channel, channels));
  }
  sums = join(sums, shared, kThreads, 1);
  if (threadIdx.x == 0) finish(channel, sums);
}

inline unsigned checked_blocks(int64_t blocks) {
  STD_TORCH_CHECK(blocks <= INT32_MAX, "the tensor is too large for one launch");
  return static_cast<unsigned>(blocks);
}

// Whether every run begins where an access of N elements may: all strides but the innermost are multiples of N.
inline bool runs_aligned(const Gather& g, int N) {
  bool all = g.run % N == 0;
  for (const int t : {kInput, kGradient, kOutput}) {
    all = all && g.channel_stride[t] % N == 0;
    for (int d = 0; d + 1 < g.layout.dims; ++d) all = all && g.layout.stride[t][d] % N == 0;
  }
  return all;
}

// Gathers, then finish(channel, sums) for every channel. partial: room for g.chunks · Op::rows · g.channels numbers.
template <class Op, class T, class Finish>
void run_gather(const Op& op, const Finish& finish, const Gather& g, const Tensor& x, const Tensor* second,
                const Tensor* output, double* partial) {
  constexpr int N = 16 / sizeof(T);
  const Tracks<T> tensors{static_cast<const T*>(x.const_data_ptr()),
                          second ? static_cast<const T*>(second->const_data_ptr()) : nullptr,
                          output ? static_cast<T*>(output->mutable_data_ptr()) : nullptr};
  const cudaStream_t stream = current_stream(x);
  const bool wide =
      runs_aligned(g, N) && aligned(tensors.x, 16) && aligned(tensors.second, 16) && aligned(tensors.y, 16);
  const int64_t tiles = divided(g.channels, kTileChannels);
  const unsigned blocks = checked_blocks(g.chunks * (g.rows ? tiles : g.channels));
  if (blocks && g.rows) {
    gather_rows<Op, T><<<blocks, kThreads, 0, stream>>>(op, tensors, g, tiles, partial);
  } else if (blocks && g.runs && wide) {
    gather_runs<Op, T, N><<<blocks, kThreads, 0, stream>>>(op, tensors, g, partial);
  } else if (blocks && g.runs) {
    gather_runs<Op, T, 1><<<blocks, kThreads, 0, stream>>>(op, tensors, g, partial);
  } else if (blocks) {
    gather_strided<Op, T><<<blocks, kThreads, 0, stream>>>(op, tensors, g, partial);
  }
  if (blocks) STD_CUDA_KERNEL_LAUNCH_CHECK();
  if (!g.channels) return;
  join_chunks<typename Op::Sums>
      <<<checked_blocks(g.channels), kThreads, 0, stream>>>(partial, Op::rows, g.channels, g.chunks, finish);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

inline Tensor room_for_sums(const Tensor& x, const Gather& g, int rows) {
  const int64_t size[] = {std::max<int64_t>(1, g.chunks * rows * g.channels)};
  return torch::stable::new_empty(x, {size, 1}, ScalarType::Double);
}

}  // namespace pq
