// What float32 and the other dtypes are to each other, element by element: the codes and both half types.
#pragma once

#include <bit>
#include <cstdint>

#include "../quantize.h"
#include "isa.h"

#if defined(PQ_X86)
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own header of AVX-512
#endif
#endif

namespace pq {

struct HalfBits {
  uint16_t bits;
};
struct BFloat16Bits {
  uint16_t bits;
};

PQ_INLINE float select(bool condition, float yes, float no) { return condition ? yes : no; }

template <class T>
PQ_INLINE float to_float(T code) {
  return static_cast<float>(code);
}
PQ_INLINE float to_float(float x) { return x; }
PQ_INLINE float to_float(BFloat16Bits x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
PQ_INLINE float to_float(HalfBits x) {
  // Exact: normal numbers get 112 more in the exponent (inf and NaN twice), subnormal ones come out of a subtraction.
  const uint32_t magnitude = x.bits & 0x7FFFu, sign = (x.bits & 0x8000u) << 16;
  const float normal = std::bit_cast<float>((magnitude << 13) + (0xE0u << 23)) * 0x1p-112f;
  const float subnormal = std::bit_cast<float>(magnitude | (126u << 23)) - 0.5f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(select(magnitude < 0x0400u, subnormal, normal)));
}

template <class T>
PQ_INLINE T from_float(float x) {
  return static_cast<T>(static_cast<int32_t>(x));  // a code: an integer that T holds
}
template <>
PQ_INLINE float from_float(float x) {
  return x;
}
template <>
PQ_INLINE BFloat16Bits from_float(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(x != x ? 0x7FC0u : rounded)};
}
template <>
PQ_INLINE HalfBits from_float(float x) {
  // Half to even by the adder: 2^112 pushes what overflows to inf, 2^-110 brings the rest back, and adding a power of
  // two that leaves 11 bits (fewer for subnormal halves) rounds.
  const uint32_t bits = std::bit_cast<uint32_t>(x), twice = bits + bits, sign = (bits >> 16) & 0x8000u;
  const float magnitude = std::bit_cast<float>(bits & 0x7FFFFFFFu);
  const float scaled = (magnitude * 0x1p+112f) * 0x1p-110f;
  const uint32_t exponent = twice & 0xFF000000u;
  const uint32_t bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const uint32_t sum = std::bit_cast<uint32_t>(std::bit_cast<float>((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t rounded = ((sum >> 13) & 0x00007C00u) + (sum & 0x00000FFFu);
  return {static_cast<uint16_t>(sign | (twice > 0xFF000000u ? 0x7E00u : rounded))};
}

}  // namespace pq
