// The CUDA driver of elementwise ops: device, stream, launch check, and the two ways through a tensor.
// What happens to an element is a functor of the op's own file.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../arguments.h"
#include "../layout.h"

namespace pq {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kThreads = 256;

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline unsigned blocks_for(int64_t threads) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  STD_TORCH_CHECK(blocks <= INT32_MAX, "the tensor is too large for one launch");
  return static_cast<unsigned>(blocks);
}

// Memory order: the channel of element i is (i / inner) % channels; inner is 1 where channels are innermost.
struct ChannelOfElement {
  int64_t inner, channels;
  bool narrow;  // 32-bit indices do: their division is several times faster

  __device__ int64_t channel(int64_t i, int64_t& left) const {
    if (channels == 1) return left = INT64_MAX, 0;
    if (narrow) {
      const uint32_t run = static_cast<uint32_t>(i) / static_cast<uint32_t>(inner);
      left = inner - (static_cast<uint32_t>(i) - run * static_cast<uint32_t>(inner));
      return run % static_cast<uint32_t>(channels);
    }
    left = inner - i % inner;
    return i / inner % channels;
  }
};

// What a kernel knows of each channel, the index of a channel being its place along the axis. Parameters have
//   packs                        how many times a thread of the dense kernel takes its elements
//   cover(block, channels), shared_bytes()   on the host: told how many elements a block has; what `prepare` fills
//   prepare(channel)             by all threads of a block of the dense kernel, whose first element is of that channel
//   at(channel)                  what the functor is given
// Scales and zero points, read where they lie:
struct DeviceGrids {
  static constexpr int packs = 1;
  const float* scale;
  const void* zero_point;
  bool learned;  // float32 zero points
  int64_t scale_stride, zero_stride;
  float qmin, qmax;

  explicit DeviceGrids(const GridArguments& a)
      : scale(static_cast<const float*>(a.scale.const_data_ptr())),
        zero_point(a.zero_point.const_data_ptr()),
        learned(a.zero_point.scalar_type() == ScalarType::Float),
        scale_stride(parameter_stride(a.scale)),
        zero_stride(parameter_stride(a.zero_point)),
        qmin(a.qmin),
        qmax(a.qmax) {}

  void cover(int64_t, const ChannelOfElement&) {}
  size_t shared_bytes() const { return 0; }
  __device__ void prepare(int64_t) {}
  __device__ Grid at(int64_t channel) const {
    const int64_t at = channel * zero_stride;
    const float zero = learned ? whole_zero_point(static_cast<const float*>(zero_point)[at], qmin, qmax)
                               : static_cast<float>(static_cast<const int32_t*>(zero_point)[at]);
    return {valid_scale(scale[channel * scale_stride]), zero, qmin, qmax};
  }
};

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

// The first `count` of N neighbours, in one access where all are there. Every index is known when compiling: a pack
// that a variable indexes would lie in local memory, in the path of whole packs too.
template <int N, class T>
__device__ Pack<T, N> load(const T* from, int count) {
  if (count == N) return *reinterpret_cast<const Pack<T, N>*>(from);
  Pack<T, N> pack{};
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k < count) pack.values[k] = from[k];
  }
  return pack;
}

template <int N, class T>
__device__ void store(T* to, const Pack<T, N>& pack, int count) {
  if (count == N) {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
    return;
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    if (k < count) to[k] = pack.values[k];
  }
}

// N elements in the order of memory from `first` on, or as many as there are.
template <class F, class In, class Out, int N, class Parameters>
__device__ void dense_pack(F f, const In* x, const In* g, Out* y, int64_t first, int64_t n,
                           const Parameters& parameters, ChannelOfElement channels, Random random) {
  const int count = n - first < N ? static_cast<int>(n - first) : N;
  const Pack<In, N> xs = load<N>(x + first, count);
  Pack<In, N> gs;
  if constexpr (F::reads_second) gs = load<N>(g + first, count);
  Pack<Out, N> ys;
  int64_t left, channel = channels.channel(first, left);
  auto parameter = parameters.at(channel);
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float gradient = F::reads_second ? static_cast<float>(gs.values[k]) : 0.0f;
    const Random own{random.seed, random.counter + static_cast<uint64_t>(first + k)};
    ys.values[k] = static_cast<Out>(f(static_cast<float>(xs.values[k]), gradient, parameter, own));
    if (--left == 0) {
      left = channels.inner;
      channel = channel + 1 == channels.channels ? 0 : channel + 1;
      parameter = parameters.at(channel);
    }
  }
  store(y + first, ys, count);
}

// Elements in the order of memory, N a thread at a time; all tensors dense and laid out alike.
template <class F, class In, class Out, int N, class Parameters>
__global__ void dense_kernel(F f, const In* x, const In* g, Out* y, int64_t n, Parameters parameters,
                             ChannelOfElement channels, Random random) {
  constexpr int64_t kBlock = int64_t{kThreads} * N * Parameters::packs;
  const int64_t begin = blockIdx.x * kBlock;
  int64_t left;
  parameters.prepare(channels.channel(begin, left));
  for (int pack = 0; pack < Parameters::packs; ++pack) {
    const int64_t first = begin + (static_cast<int64_t>(pack) * kThreads + threadIdx.x) * N;
    if (first >= n) return;
    dense_pack<F, In, Out, N>(f, x, g, y, first, n, parameters, channels, random);
  }
}

// Any strides, an element a thread.
template <class F, class In, class Out, class Parameters>
__global__ void strided_kernel(F f, const In* x, const In* g, Out* y, Layout layout, Parameters parameters,
                               Random random) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= layout.numel) return;
  int64_t inner;
  const Position at = locate(layout, i, inner);
  const int64_t channel = layout.period ? inner % layout.period : at.offset[kChannel];
  const float gradient = F::reads_second ? static_cast<float>(g[at.offset[kGradient]]) : 0.0f;
  const Random own{random.seed, random.counter + static_cast<uint64_t>(at.offset[kLogical])};
  y[at.offset[kOutput]] =
      static_cast<Out>(f(static_cast<float>(x[at.offset[kInput]]), gradient, parameters.at(channel), own));
}

// Whether a track of the nest goes through memory element by element.
inline bool in_sequence(const Layout& layout, Track track) {
  int64_t expected = 1;
  for (int d = layout.dims - 1; d >= 0; --d) {
    if (layout.stride[track][d] != expected) return false;
    expected *= layout.size[d];
  }
  return true;
}

inline ChannelOfElement channel_of_element(const Layout& layout, int64_t channels) {
  int64_t inner = 1;
  for (int d = layout.dims - 1; d >= 0 && layout.stride[kChannel][d] == 0; --d) inner *= layout.size[d];
  return {inner, channels, layout.numel < INT32_MAX};
}

PQ_INLINE bool aligned(const void* pointer, size_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// y = f(x, g) elementwise. g is null unless F needs it; `random` where F rounds stochastically, else null.
template <class F, class In, class Out, class Parameters>
void launch(const F& f, const Tensor& x, const Tensor* g, const Tensor& y, Parameters parameters, int64_t axis,
            const Random* random = nullptr) {
  constexpr int N = 16 / (sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));
  constexpr int kOfThread = N * Parameters::packs;
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Layout layout = make_layout(x, g, &y, axis, random);
  const In* from = static_cast<const In*>(x.const_data_ptr());
  const In* gradient = g ? static_cast<const In*>(g->const_data_ptr()) : nullptr;
  Out* to = static_cast<Out*>(y.mutable_data_ptr());
  const Random first = random ? *random : Random{0, 0};
  const bool dense = in_sequence(layout, kInput) && in_sequence(layout, kOutput) &&
                     (!g || in_sequence(layout, kGradient)) && (!random || in_sequence(layout, kLogical)) &&
                     aligned(from, sizeof(Pack<In, N>)) && aligned(to, sizeof(Pack<Out, N>)) &&
                     aligned(gradient, sizeof(Pack<In, N>));
  if (dense) {
    const ChannelOfElement channels = channel_of_element(layout, axis < 0 ? 1 : x.size(axis));
    parameters.cover(int64_t{kThreads} * kOfThread, channels);
    const unsigned blocks = blocks_for((layout.numel + kOfThread - 1) / kOfThread);
    dense_kernel<F, In, Out, N><<<blocks, kThreads, parameters.shared_bytes(), current_stream(x)>>>(
        f, from, gradient, to, layout.numel, parameters, channels, first);
  } else {
    strided_kernel<F, In, Out><<<blocks_for(layout.numel), kThreads, 0, current_stream(x)>>>(f, from, gradient, to,
                                                                                             layout, parameters, first);
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The same on a uniform grid.
template <class F, class In, class Out>
void launch(const F& f, const Tensor& x, const Tensor* g, const Tensor& y, const GridArguments& arguments) {
  launch<F, In, Out>(f, x, g, y, DeviceGrids(arguments), arguments.axis,
                     arguments.stochastic() ? &arguments.random : nullptr);
}

// visit.operator()<T>() with the floating type as a template argument.
template <class Visit>
void with_float(ScalarType dtype, const Visit& visit) {
  switch (dtype) {
    case ScalarType::Float: return visit.template operator()<float>();
    case ScalarType::Half: return visit.template operator()<Half>();
    case ScalarType::BFloat16: return visit.template operator()<BFloat16>();
    default: STD_TORCH_CHECK(false, "pytorch_quantizer takes float32, float16 and bfloat16");
  }
}

// The same for the types of codes.
template <class Visit>
void with_code(ScalarType dtype, const Visit& visit) {
  switch (dtype) {
    case ScalarType::Byte: return visit.template operator()<uint8_t>();
    case ScalarType::Char: return visit.template operator()<int8_t>();
    case ScalarType::Short: return visit.template operator()<int16_t>();
    case ScalarType::Int: return visit.template operator()<int32_t>();
    default: STD_TORCH_CHECK(false, "codes must be int8, uint8, int16 or int32");
  }
}

}  // namespace pq
