// pack and unpack on CUDA: a thread takes eight codes; the bytes of a block pass through shared memory, so that memory
// sees them sixteen at a time whatever the width.

#include "../ops.h"
#include "../pack.h"
#include "elementwise.cuh"

namespace pq {

namespace {

// By all threads of a block.
__device__ void copy_bytes(const uint8_t* from, uint8_t* to, int count) {
  const int words = aligned(from, 16) && aligned(to, 16) ? count / 16 : 0;
  for (int i = threadIdx.x; i < words; i += kThreads) {
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  for (int i = 16 * words + threadIdx.x; i < count; i += kThreads) to[i] = from[i];
}

// How many of the packed bytes are a block's.
__device__ int block_bytes(int64_t n, int bits) {
  const int64_t left = (n * bits + 7) / 8 - static_cast<int64_t>(blockIdx.x) * kThreads * bits;
  return left < kThreads * bits ? static_cast<int>(left) : kThreads * bits;
}

// in_words: the codes are aligned so that eight of them can be taken at once. What lies beyond them all counts as 0.
template <class Code, int bits>
__global__ void pack_kernel(const Code* codes, uint8_t* packed, int64_t n, bool in_words) {
  __shared__ alignas(16) uint8_t bytes[kThreads * bits];
  const int64_t block = blockIdx.x, first = (block * kThreads + threadIdx.x) * kGroup;
  Pack<Code, kGroup> group;
  if (in_words && n - first >= kGroup) {
    group = *reinterpret_cast<const Pack<Code, kGroup>*>(codes + first);
  } else {
    for (int k = 0; k < kGroup; ++k) group.values[k] = first + k < n ? codes[first + k] : Code{0};
  }
  PackLane<bits> lanes[kGroup];
  for (int k = 0; k < kGroup; ++k) lanes[k] = static_cast<PackLane<bits>>(group.values[k]);
  pack_group<bits>(lanes, bytes + threadIdx.x * bits);
  __syncthreads();
  copy_bytes(bytes, packed + block * kThreads * bits, block_bytes(n, bits));
}

template <class Code, int bits>
__global__ void unpack_kernel(const uint8_t* packed, Code* codes, int64_t n, bool is_signed, bool in_words) {
  using Lane = PackLane<bits>;
  __shared__ alignas(16) uint8_t bytes[kThreads * bits];
  const int64_t block = blockIdx.x, first = (block * kThreads + threadIdx.x) * kGroup;
  copy_bytes(packed + block * kThreads * bits, bytes, block_bytes(n, bits));
  __syncthreads();
  Lane lanes[kGroup];
  unpack_group<bits>(bytes + threadIdx.x * bits, lanes, is_signed);
  Pack<Code, kGroup> group;
  for (int k = 0; k < kGroup; ++k) {
    const auto extended = static_cast<std::make_signed_t<Lane>>(lanes[k]);
    group.values[k] = is_signed ? static_cast<Code>(extended) : static_cast<Code>(lanes[k]);
  }
  if (in_words && n - first >= kGroup) {
    *reinterpret_cast<Pack<Code, kGroup>*>(codes + first) = group;
  } else {
    for (int k = 0; k < kGroup && first + k < n; ++k) codes[first + k] = group.values[k];
  }
}

// visit.operator()<Code>() with an unsigned type as wide as the codes: what is written has its sign already.
template <class Visit>
void with_width(size_t bytes, const Visit& visit) {
  if (bytes == 1) return visit.template operator()<uint8_t>();
  if (bytes == 2) return visit.template operator()<uint16_t>();
  visit.template operator()<uint32_t>();
}

unsigned blocks_of(int64_t numel) { return blocks_for((numel + kGroup - 1) / kGroup); }

}  // namespace

void pack_into(const Tensor& codes, int64_t bits, const Tensor& packed) {
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  uint8_t* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  with_code(codes.scalar_type(), [&]<class Code>() {
    const Code* from = static_cast<const Code*>(codes.const_data_ptr());
    with_bits(bits, [&]<int b>() {
      pack_kernel<Code, b><<<blocks_of(codes.numel()), kThreads, 0, current_stream(codes)>>>(
          from, to, codes.numel(), aligned(from, sizeof(Pack<Code, kGroup>)));
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

void unpack_into(const Tensor& packed, int64_t bits, bool is_signed, const Tensor& codes) {
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  const uint8_t* from = static_cast<const uint8_t*>(packed.const_data_ptr());
  with_width(codes.element_size(), [&]<class Code>() {
    Code* to = static_cast<Code*>(codes.mutable_data_ptr());
    with_bits(bits, [&]<int b>() {
      unpack_kernel<Code, b><<<blocks_of(codes.numel()), kThreads, 0, current_stream(codes)>>>(
          from, to, codes.numel(), is_signed, aligned(to, sizeof(Pack<Code, kGroup>)));
    });
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace pq
