// Dense little-endian bit streams: code i occupies bits [i·b, (i + 1)·b), bit j is bit j % 8 of byte j / 8. Eight codes
// of b bits are b bytes, so they are packed together: as lanes of a word, 8 bits wide, or 16 where b > 8.
#pragma once

#include <bit>
#include <cstring>
#include <type_traits>

#include "arguments.h"

namespace pq {

static_assert(std::endian::native == std::endian::little, "words are stored as their bytes lie");

constexpr int64_t kMaxPackedBits = 16;
constexpr int64_t kGroup = 8;  // codes

template <int bits>
using PackLane = std::conditional_t<bits <= 8, uint8_t, uint16_t>;

// The lowest `bits` of each lane of a word.
constexpr uint64_t low_bits(int lane, int bits) {
  uint64_t mask = 0;
  for (int at = 0; at < 64; at += lane) mask |= ~uint64_t{0} >> (64 - bits) << at;
  return mask;
}

// The low bits of every lane moved together at the bottom of the word: neighbours first, then pairs of them.
template <int lane, int bits>
PQ_INLINE uint64_t close_up(uint64_t word) {
  if constexpr (lane == 64) {
    return word;
  } else {
    constexpr uint64_t even = low_bits(2 * lane, bits), odd = even << lane;
    return close_up<2 * lane, 2 * bits>((word & even) | (word & odd) >> (lane - bits));
  }
}

// Its inverse; what lies above is dropped.
template <int lane, int bits>
PQ_INLINE uint64_t spread_out(uint64_t word) {
  if constexpr (lane == 64) {
    return word;
  } else {
    constexpr uint64_t even = low_bits(2 * lane, bits), odd = even << bits;
    word = spread_out<2 * lane, 2 * bits>(word);
    return (word & even) | (word & odd) << (lane - bits);
  }
}

// Two's complement: the highest of a lane's bits repeated above it.
template <int lane, int bits>
PQ_INLINE uint64_t extend_sign(uint64_t word) {
  constexpr uint64_t mask = low_bits(lane, 1) << (bits - 1);
  const uint64_t above = (word & mask) << 1;
  return word | ((above << (lane - bits)) - above);
}

template <int bytes>
using Word =
    std::conditional_t<bytes == 8, uint64_t,
                       std::conditional_t<bytes == 4, uint32_t, std::conditional_t<bytes == 2, uint16_t, uint8_t>>>;

// 0 to 8 bytes as one number, and back: in the fewest words. (A memcpy into a longer word would pass through memory.)
template <int bytes>
PQ_INLINE uint64_t load_bytes(const uint8_t* from) {
  if constexpr (bytes == 0) {
    return 0;
  } else {
    constexpr int whole = std::bit_floor(static_cast<unsigned>(bytes));
    Word<whole> word;
    memcpy(&word, from, whole);
    return word | load_bytes<bytes - whole>(from + whole) << (8 * whole % 64);
  }
}

template <int bytes>
PQ_INLINE void store_bytes(uint64_t value, uint8_t* to) {
  if constexpr (bytes > 0) {
    constexpr int whole = std::bit_floor(static_cast<unsigned>(bytes));
    const auto word = static_cast<Word<whole>>(value);
    memcpy(to, &word, whole);
    store_bytes<bytes - whole>(value >> (8 * whole % 64), to + whole);
  }
}

// Eight lanes into `bits` bytes.
template <int bits>
PQ_INLINE void pack_group(const PackLane<bits>* lanes, uint8_t* packed) {
  if constexpr (bits <= 8) {
    uint64_t word;
    memcpy(&word, lanes, 8);
    store_bytes<bits>(close_up<8, bits>(word), packed);
  } else {
    uint64_t words[2];
    memcpy(words, lanes, 16);
    const uint64_t low = close_up<16, bits>(words[0]), high = close_up<16, bits>(words[1]);
    store_bytes<8>(bits < 16 ? low | high << (4 * bits % 64) : low, packed);
    store_bytes<bits - 8>(high >> (64 - 4 * bits), packed + 8);
  }
}

// A word of lanes from the bits at its bottom.
template <int lane, int bits>
PQ_INLINE uint64_t lanes_of(uint64_t word, bool is_signed) {
  word = spread_out<lane, bits>(word);
  return is_signed ? extend_sign<lane, bits>(word) : word;
}

// And back.
template <int bits>
PQ_INLINE void unpack_group(const uint8_t* packed, PackLane<bits>* lanes, bool is_signed) {
  if constexpr (bits <= 8) {
    const uint64_t word = lanes_of<8, bits>(load_bytes<bits>(packed), is_signed);
    memcpy(lanes, &word, 8);
  } else {
    const uint64_t first = load_bytes<8>(packed), rest = load_bytes<bits - 8>(packed + 8);
    const uint64_t high = bits < 16 ? rest << (64 - 4 * bits) | first >> (4 * bits % 64) : rest;
    const uint64_t words[] = {lanes_of<16, bits>(first, is_signed), lanes_of<16, bits>(high, is_signed)};
    memcpy(lanes, words, 16);
  }
}

inline int64_t packed_bytes(int64_t numel, int64_t bits) { return (numel * bits + 7) / 8; }

// visit.operator()<bits>() with the width as a template argument.
template <int bits = 1, class Visit>
void with_bits(int64_t wanted, const Visit& visit) {
  if (wanted == bits) {
    visit.template operator()<bits>();
  } else if constexpr (bits < kMaxPackedBits) {
    with_bits<bits + 1>(wanted, visit);
  }
}

// What ops/ has checked, for those who call the raw ops: a wrong size or type must not reach foreign memory.
inline void check_packing(ScalarType dtype, int64_t bits) {
  check_codes(dtype);
  STD_TORCH_CHECK(bits >= 1 && bits <= kMaxPackedBits, "bits must be between 1 and 16, got ", bits);
}

inline void check_packed(const Tensor& packed, int64_t numel, int64_t bits) {
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.dim() == 1, "packed must be uint8, one dimension");
  STD_TORCH_CHECK(numel >= 0 && numel <= INT64_MAX / kMaxPackedBits, "there can't be ", numel, " codes");
  const int64_t bytes = packed_bytes(numel, bits);
  STD_TORCH_CHECK(packed.numel() >= bytes, numel, " codes of ", bits, " bits take ", bytes, " bytes, packed has ",
                  packed.numel());
}

// Both contiguous, `out` written.
inline void check_apart(const Tensor& x, const Tensor& out) {
  STD_TORCH_CHECK(out.is_contiguous(), "out must be contiguous");
  STD_TORCH_CHECK(x.device() == out.device(), "out must be on the device of what it is made from");
  STD_TORCH_CHECK(lie_apart(x, out), "out must not overlap what it is made from");
}

inline Tensor new_flat(const Tensor& like, int64_t numel, ScalarType dtype) {
  return torch::stable::new_empty(like, {&numel, 1}, dtype);
}

}  // namespace pq
