// The codebook quantizer on CUDA: the nearest level, its index, and back.

#include "../codebook.h"
#include "../ops.h"
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

}  // namespace

void nearest_level_into(const Tensor& x, const Tensor& levels, const Tensor& highest, int64_t axis, const Tensor& y) {
  const DeviceCodebooks all = codebooks(&levels, &highest, levels_of(highest), x, axis);
  with_float(x.scalar_type(), [&]<class T>() { launch<Nearest, T, T>({}, x, nullptr, y, all, axis); });
}

void level_index_into(const Tensor& x, const Tensor& highest, int64_t axis, const Tensor& codes) {
  const DeviceCodebooks all = codebooks(nullptr, &highest, levels_of(highest), x, axis);
  with_float(x.scalar_type(), [&]<class T>() { launch<Index, T, uint8_t>({}, x, nullptr, codes, all, axis); });
}

void level_into(const Tensor& codes, const Tensor& levels, int64_t axis, const Tensor& y) {
  const int32_t count = static_cast<int32_t>(levels.size(levels.dim() - 1));
  const DeviceCodebooks all = codebooks(&levels, nullptr, count, codes, axis);
  with_float(y.scalar_type(), [&]<class T>() { launch<Level, uint8_t, T>({}, codes, nullptr, y, all, axis); });
}

}  // namespace pq
