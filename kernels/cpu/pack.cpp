// pack and unpack on the CPU: rows of codes over torch's threads, each brought into lanes of 8 or 16 bits.
#include "../pack.h"

#include "../ops.h"
#include "isa.h"
#include "rows.h"

#define PQ_LOOPS "pack.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

using ConvertCodes = void (*)(const void* from, void* to, int64_t n);

// Codes into lanes; of wider codes the upper bits are dropped. Null: they are lanes already.
template <class Lane>
ConvertCodes to_lanes(const Tensor& codes) {
  if (codes.element_size() == sizeof(Lane)) return nullptr;
  switch (codes.scalar_type()) {
    case ScalarType::Byte: return PQ_PICK(convert_row<uint8_t, Lane>);
    case ScalarType::Char: return PQ_PICK(convert_row<int8_t, Lane>);
    case ScalarType::Short: return PQ_PICK(convert_row<int16_t, Lane>);
    default: return PQ_PICK(convert_row<int32_t, Lane>);
  }
}

// Lanes into codes; Lane is signed where the codes are.
template <class Lane>
ConvertCodes from_lanes(size_t bytes) {
  if (bytes == sizeof(Lane)) return nullptr;
  if (bytes == 1) return PQ_PICK(convert_row<Lane, uint8_t>);
  if (bytes == 2) return PQ_PICK(convert_row<Lane, uint16_t>);
  return PQ_PICK(convert_row<Lane, uint32_t>);
}

// body(first code, how many): rows of whole groups, but for the last of them all.
template <class Body>
void for_each_row_of(int64_t numel, const Body& body) {
  const int64_t rows = (numel + kRow - 1) / kRow;
  torch::stable::parallel_for(0, rows, kRowsPerThread, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row * kRow, std::min(kRow, numel - row * kRow));
  });
}

template <int bits>
void pack_rows(const Tensor& codes, uint8_t* packed) {
  using Lane = PackLane<bits>;
  const auto pack_row = PQ_PICK(pack_row<bits>);
  const size_t bytes = codes.element_size();
  const ConvertCodes convert = to_lanes<Lane>(codes);
  const char* data = static_cast<const char*>(codes.const_data_ptr());
  for_each_row_of(codes.numel(), [&](int64_t first, int64_t n) {
    alignas(64) Lane buffer[kRow];
    const char* from = data + first * bytes;
    uint8_t* to = packed + first / kGroup * bits;
    if (convert) convert(from, buffer, n);
    const Lane* lanes = convert ? buffer : reinterpret_cast<const Lane*>(from);
    const int64_t groups = n / kGroup, rest = n % kGroup;
    pack_row(lanes, to, groups);
    if (!rest) return;
    Lane last[kGroup] = {};
    uint8_t group[bits];
    std::memcpy(last, lanes + groups * kGroup, rest * sizeof(Lane));
    pack_group<bits>(last, group);
    std::memcpy(to + groups * bits, group, packed_bytes(rest, bits));
  });
}

template <int bits>
void unpack_rows(const uint8_t* packed, bool is_signed, const Tensor& codes) {
  using Lane = PackLane<bits>;
  const auto unpack_row = PQ_PICK(unpack_row<bits>);
  const size_t bytes = codes.element_size();
  const ConvertCodes convert = is_signed ? from_lanes<std::make_signed_t<Lane>>(bytes) : from_lanes<Lane>(bytes);
  char* data = static_cast<char*>(codes.mutable_data_ptr());
  for_each_row_of(codes.numel(), [&](int64_t first, int64_t n) {
    alignas(64) Lane buffer[kRow];
    const uint8_t* from = packed + first / kGroup * bits;
    char* to = data + first * bytes;
    Lane* lanes = convert ? buffer : reinterpret_cast<Lane*>(to);
    const int64_t groups = n / kGroup, rest = n % kGroup;
    unpack_row(from, lanes, groups, is_signed);
    if (rest) {
      Lane last[kGroup];
      uint8_t group[bits] = {};
      std::memcpy(group, from + groups * bits, packed_bytes(rest, bits));
      unpack_group<bits>(group, last, is_signed);
      std::memcpy(lanes + groups * kGroup, last, rest * sizeof(Lane));
    }
    if (convert) convert(buffer, to, n);
  });
}

}  // namespace

void pack_into(const Tensor& codes, int64_t bits, const Tensor& packed) {
  uint8_t* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  with_bits(bits, [&]<int b>() { pack_rows<b>(codes, to); });
}

void unpack_into(const Tensor& packed, int64_t bits, bool is_signed, const Tensor& codes) {
  const uint8_t* from = static_cast<const uint8_t*>(packed.const_data_ptr());
  with_bits(bits, [&]<int b>() { unpack_rows<b>(from, is_signed, codes); });
}

}  // namespace pq
