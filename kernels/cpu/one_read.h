// How tensor_statistics does with one read of a large tensor. E|x − μ| needs the mean first, but only of the elements
// beside it: Σ|x − μ| = 2·Σ max(x − μ, 0), and above a middle [low, high] that holds μ
//   Σ max(x − μ, 0) = Σ max(x − high, 0) + N(x > high)·(high − μ) + Σ max(x − μ, 0) over the middle's few elements,
// which are kept until μ is known. Nothing is approximated: a sample says where the middle is, never what comes out.
#pragma once

#include <cmath>
#include <optional>

#include "../statistics.h"
#include "walk.h"

namespace pq {

constexpr int64_t kOneRead = int64_t{1} << 22;  // elements: fewer stay in the caches for a second read

// Where the mean is likely to be.
struct Middle {
  float low, high;

  bool holds(double x) const { return low <= x && x <= high; }  // not NaN
};

enum OnceRow { kExcess = kFirst, kAbove, kSquareSum, kOnce };  // behind First's rows

// What one read gathers beyond First: Σ max(x − high, 0), N(x > high), Σx².
struct Once {
  double excess = 0.0, above = 0.0, square = 0.0;

  static Once of(float x, Middle middle) {
    const double v = x;
    return {x > middle.high ? v - middle.high : 0.0, x > middle.high ? 1.0 : 0.0, v * v};
  }
  static Once read(const double* from) { return {from[kExcess], from[kAbove], from[kSquareSum]}; }
  void add(const Once& other) {
    excess += other.excess;
    above += other.above;
    square += other.square;
  }
  void write(double* to) const {
    to[kExcess] = excess;
    to[kAbove] = above;
    to[kSquareSum] = square;
  }
};

constexpr int64_t kSampleRun = 16;  // a line of the cache: to read less costs as much

// Runs of neighbours, one from each of equal pieces of the tensor, at places that are always the same but look random:
// no period in the tensor meets them. First all are fetched, then one counts: the processor waits for many at once.
inline std::vector<float> sample_of(const Walk& walk) {
  const int64_t lines = walk.per_channel / kSampleRun, runs = std::min<int64_t>(lines / 128, 4096),
                apart = lines / runs;
  std::vector<float> sample(runs * kSampleRun);
  for (int64_t i = 0; i < runs; ++i) {
    const uint64_t random = (static_cast<uint64_t>(i) * 0x9E3779B97F4A7C15u) >> 32;
    const int64_t line = i * apart + static_cast<int64_t>(random * static_cast<uint64_t>(apart) >> 32);
    float* to = sample.data() + i * kSampleRun;
    const float* from = walk.source.load(line * kSampleRun, kSampleRun, to);
    if (from != to) std::memcpy(to, from, kSampleRun * sizeof(float));
  }
  return sample;
}

// Three standard errors to either side of the sample's mean. Errors of runs, not of elements: neighbours are alike.
inline Middle middle_of(const std::vector<float>& sample) {
  const int64_t runs = static_cast<int64_t>(sample.size()) / kSampleRun;
  std::vector<double> sums(runs);
  for (int64_t i = 0; i < runs; ++i) {
    for (int64_t k = 0; k < kSampleRun; ++k) sums[i] += sample[i * kSampleRun + k];
  }
  double mean = 0.0, square = 0.0;
  for (const double sum : sums) mean += sum / static_cast<double>(runs);
  for (const double sum : sums) square += (sum - mean) * (sum - mean);
  const double reach = 3.0 * std::sqrt(square) / static_cast<double>(runs);
  return {static_cast<float>((mean - reach) / kSampleRun), static_cast<float>((mean + reach) / kSampleRun)};
}

// Whether Σx² says too little of the variance, which loses in bits the logarithm of μ² / σ².
inline bool far_from_zero(double mean, double variance) { return !(mean * mean <= 64.0 * variance); }

inline double variance_about(double mean, const std::vector<float>& sample) {
  double square = 0.0;
  for (const float x : sample) square += (x - mean) * (x - mean);
  return square / static_cast<double>(sample.size());
}

// None where one read would be no gain: small tensors, channels, a mean far from 0, more elements within the middle
// than it is worth to keep (half of them 0 and the mean beside it), NaN.
inline std::optional<Middle> find_middle(const Walk& walk) {
  const bool in_a_row = walk.layout.dims == 1 && walk.layout.stride[kInput][0] == 1;
  if (walk.channels != 1 || walk.rows || !in_a_row || walk.per_channel < kOneRead) return std::nullopt;
  const std::vector<float> sample = sample_of(walk);
  const Middle middle = middle_of(sample);
  const auto within = std::count_if(sample.begin(), sample.end(), [&](float x) { return middle.holds(x); });
  const bool few = within * 16 <= static_cast<int64_t>(sample.size());
  const double centre = 0.5 * (static_cast<double>(middle.low) + middle.high);
  return few && !far_from_zero(centre, variance_about(centre, sample)) ? std::optional(middle) : std::nullopt;
}

}  // namespace pq
