// The scalar formulas of the uniform quantizer, included by every backend; nothing here knows about tensors.
// IEEE float32 throughout: a true division, no contraction to FMA (see the flags in setup.py), NaN kept by every clamp.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define PQ_INLINE __host__ __device__ __forceinline__
#else
// Forced, so that a loop compiled for AVX-512 gets the formula in AVX-512 and not a call into the baseline.
#define PQ_INLINE __attribute__((always_inline)) inline
#endif

namespace pq {

enum class Rounding : int64_t { half_even, half_away, stochastic };

struct Grid {
  float scale, zero_point, qmin, qmax;
};

struct Random {
  uint64_t seed, counter;
};

// A zero point that is being learned: the whole number on the grid that runs. NaN stays NaN.
PQ_INLINE float whole_zero_point(float zero_point, float qmin, float qmax) {
  const float whole = rintf(zero_point), above = whole < qmin ? qmin : whole;
  return above > qmax ? qmax : above;
}

// A scale that isn't positive and finite becomes NaN, and with it everything computed from it.
PQ_INLINE float valid_scale(float scale) { return scale > 0.0f && scale <= FLT_MAX ? scale : NAN; }

// Philox4x32-10 (Salmon et al. 2011), counter (lo, hi, 0, 0): the first of its four words.
PQ_INLINE uint32_t philox(Random random) {
  uint32_t a = static_cast<uint32_t>(random.counter), b = static_cast<uint32_t>(random.counter >> 32), c = 0, d = 0;
  uint32_t key_a = static_cast<uint32_t>(random.seed), key_b = static_cast<uint32_t>(random.seed >> 32);
#if defined(__CUDA_ARCH__)
#pragma unroll
#elif defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = static_cast<uint64_t>(a) * 0xD2511F53u, high = static_cast<uint64_t>(c) * 0xCD9E8D57u;
    a = static_cast<uint32_t>(high >> 32) ^ b ^ key_a;
    b = static_cast<uint32_t>(high);
    c = static_cast<uint32_t>(low >> 32) ^ d ^ key_b;
    d = static_cast<uint32_t>(low);
    key_a += 0x9E3779B9u;
    key_b += 0xBB67AE85u;
  }
  return a;
}

// Uniform in [0, 1): the upper 24 bits, because float32 holds no more and the product with 2^-24 is exact.
PQ_INLINE float uniform24(Random random) {
  return static_cast<float>(static_cast<int32_t>(philox(random) >> 8)) * 0x1p-24f;
}

// The number that a rounding draws, 0 where it draws none.
PQ_INLINE float drawn(Rounding rounding, Random random) {
  return rounding == Rounding::stochastic ? uniform24(random) : 0.0f;
}

// u: uniform in [0, 1), of interest to stochastic rounding alone.
PQ_INLINE float round_to_integer(float v, Rounding rounding, float u) {
  if (rounding == Rounding::half_even) {
    return rintf(v);
  } else if (rounding == Rounding::half_away) {
    // Not trunc(v + 0.5): that sends 0.49999997 to 1 and every odd number above 2^23 to its neighbour.
    const float whole = truncf(v);
    return whole + (fabsf(v - whole) >= 0.5f ? copysignf(1.0f, v) : 0.0f);
  } else {
    const float below = floorf(v);
    return below + (u < v - below ? 1.0f : 0.0f);
  }
}

PQ_INLINE float unclamped(float x, Grid grid, Rounding rounding, float u) {
  return round_to_integer(x / grid.scale, rounding, u) + grid.zero_point;
}

PQ_INLINE float clamp(float q, Grid grid) {
  q = q < grid.qmin ? grid.qmin : q;
  return q > grid.qmax ? grid.qmax : q;
}

PQ_INLINE float dequantize(float q, Grid grid) { return (q - grid.zero_point) * grid.scale; }

PQ_INLINE float fake_quantize(float x, Grid grid, Rounding rounding, float u) {
  return dequantize(clamp(unclamped(x, grid, rounding, u), grid), grid);
}

PQ_INLINE float rectify(float x) { return x < 0.0f ? 0.0f : x; }

// NaN has no code: it takes that of zero.
PQ_INLINE float code(float x, Grid grid, Rounding rounding, float u) {
  const float q = unclamped(x, grid, rounding, u);
  return clamp(q != q ? grid.zero_point : q, grid);
}

// The straight-through gradient: a choice, not a product, so that an infinite g outside the grid gives 0.
PQ_INLINE float straight_through(float g, float x, Grid grid, Rounding rounding, float u) {
  const float q = unclamped(x, grid, rounding, u);
  return q >= grid.qmin && q <= grid.qmax ? g : 0.0f;
}

// Gradients where scale s and zero point z are learned (LSQ, LSQ+): dx, and what to add to ds = Σ g·slope and to
// dz = −s·Σ outside.
struct Learned {
  float dx, slope, outside;
};

PQ_INLINE Learned learned(float g, float x, Grid grid) {
  const float v = x / grid.scale, q = rintf(v) + grid.zero_point, kept = clamp(q, grid);
  const bool inside = q == kept;  // NaN is not
  return {inside ? g : 0.0f, (kept - grid.zero_point) - (inside ? v : 0.0f), inside ? 0.0f : g};
}

}  // namespace pq
