// The codebook quantizer on CUDA: the nearest level, its index, and back.
#include <torch/csrc/stable/library.h>

#include "../codebook.h"
#include "elementwise.cuh"

namespace pq {

namespace {

// The codebooks of all channels; a block of the dense kernel brings those that its elements need into shared memory.
struct DeviceCodebooks {
  static constexpr int packs = 4;
  Codebook codebook;
  int64_t channels;
  int64_t first = 0;  // the channel whose codebook comes first
  int shared = 0;     // how many channels' codebooks are in shared memory; 0: they are read where they lie

  DeviceCodebooks(Codebook all, int64_t channels) : codebook(all), channels(channels) {}

  int entries() const { return (codebook.levels ? codebook.count : 0) + (codebook.highest ? codebook.count - 1 : 0); }

  // Only where they are few beside a block's elements is fetching them worth it; so they fit, too.
  void cover(int64_t block, const ChannelOfElement& element) {
    const int64_t met = std::min(channels, (block - 1) / element.inner + 2);
    shared = met * entries() <= block / 4 ? static_cast<int>(met) : 0;
  }
  size_t shared_bytes() const { return sizeof(float) * shared * entries(); }

  // The rows of the channels from `channel` on, as many as are shared, brought to `to`; null stays null.
  __device__ const float* fetch(const float* rows, int length, int64_t channel, float* to) const {
    if (!rows) return nullptr;
    for (int i = threadIdx.x; i < shared * length; i += kThreads) {
      to[i] = rows[(channel + i / length) % channels * length + i % length];
    }
    return to;
  }
  __device__ void prepare(int64_t channel) {
    extern __shared__ float tables[];
    if (!shared) return;
    float* thresholds = tables + (codebook.levels ? shared * codebook.count : 0);
    codebook.levels = fetch(codebook.levels, codebook.count, channel, tables);
    codebook.highest = fetch(codebook.highest, codebook.count - 1, channel, thresholds);
    first = channel;
    __syncthreads();
  }
  __device__ Codebook at(int64_t channel) const {
    return codebook.of(channel < first ? channel - first + channels : channel - first);
  }
};

struct Nearest {
  static constexpr bool reads_second = false;
  __device__ float operator()(float x, float, const Codebook& codebook, Random) const {
    return nearest_level(x, codebook);
  }
};

struct Index {
  static constexpr bool reads_second = false;
  __device__ uint8_t operator()(float x, float, const Codebook& codebook, Random) const {
    return static_cast<uint8_t>(level_index(without_nan(x), codebook));
  }
};

struct Level {
  static constexpr bool reads_second = false;
  __device__ float operator()(float code, float, const Codebook& codebook, Random) const {
    return level_of(static_cast<uint8_t>(code), codebook);
  }
};

DeviceCodebooks codebooks(const Tensor* levels, const Tensor* highest, int32_t count, const Tensor& x, int64_t axis) {
  return {{levels ? entries(*levels) : nullptr, highest ? entries(*highest) : nullptr, count},
          axis < 0 ? 1 : x.size(axis)};
}

void fake_quantize_to(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis, const Tensor& y) {
  check_codebook(x, levels, highest, axis);
  if (x.numel() == 0) return;
  const Tensor own = torch::stable::contiguous(levels), thresholds = torch::stable::contiguous(highest);
  const DeviceCodebooks all = codebooks(&own, &thresholds, levels_of(highest), x, axis);
  with_float(x.scalar_type(), [&]<class T>() { launch<Nearest, T, T>({}, x, nullptr, y, all, axis); });
}

Tensor codebook_fake_quantize(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis) {
  Tensor y = torch::stable::empty_like(x);
  fake_quantize_to(x, levels, highest, axis, y);
  return y;
}

void codebook_fake_quantize_out(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis,
                                const Tensor& out) {
  check_like(x, out, "out");
  check_output(x, out);
  fake_quantize_to(x, levels, highest, axis, out);
}

Tensor codebook_quantize(const Tensor& x, const Tensor& highest, int64_t axis) {
  check_highest(x, highest, axis);
  Tensor codes = empty_like(x, ScalarType::Byte);
  if (x.numel() == 0) return codes;
  const Tensor thresholds = torch::stable::contiguous(highest);
  const DeviceCodebooks all = codebooks(nullptr, &thresholds, levels_of(highest), x, axis);
  with_float(x.scalar_type(), [&]<class T>() { launch<Index, T, uint8_t>({}, x, nullptr, codes, all, axis); });
  return codes;
}

Tensor codebook_dequantize(const Tensor& codes, const Tensor& levels, int64_t axis, ScalarType dtype) {
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Byte, "codes must be uint8");
  check_levels(codes, levels, axis);
  Tensor y = empty_like(codes, dtype);
  if (codes.numel() == 0) return y;
  const Tensor own = torch::stable::contiguous(levels);
  const int32_t count = static_cast<int32_t>(own.size(own.dim() - 1));
  const DeviceCodebooks all = codebooks(&own, nullptr, count, codes, axis);
  with_float(dtype, [&]<class T>() { launch<Level, uint8_t, T>({}, codes, nullptr, y, all, axis); });
  return y;
}

}  // namespace

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CUDA, m) {
  m.impl("codebook_fake_quantize", TORCH_BOX(&pq::codebook_fake_quantize));
  m.impl("codebook_fake_quantize_out", TORCH_BOX(&pq::codebook_fake_quantize_out));
  m.impl("codebook_quantize", TORCH_BOX(&pq::codebook_quantize));
  m.impl("codebook_dequantize", TORCH_BOX(&pq::codebook_dequantize));
}
