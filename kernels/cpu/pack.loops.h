// Packing and unpacking a row of groups of eight codes. Included once an instruction set by each_isa.h.

template <int bits>
void pack_row(const void* from, uint8_t* packed, int64_t groups) {
  const auto* lanes = static_cast<const PackLane<bits>*>(from);
  PQ_INDEPENDENT
  for (int64_t g = 0; g < groups; ++g) pack_group<bits>(lanes + kGroup * g, packed + bits * g);
}

template <int bits>
void unpack_row(const uint8_t* packed, void* to, int64_t groups, bool is_signed) {
  auto* lanes = static_cast<PackLane<bits>*>(to);
  if (is_signed) {
    PQ_INDEPENDENT
    for (int64_t g = 0; g < groups; ++g) unpack_group<bits>(packed + bits * g, lanes + kGroup * g, true);
  } else {
    PQ_INDEPENDENT
    for (int64_t g = 0; g < groups; ++g) unpack_group<bits>(packed + bits * g, lanes + kGroup * g, false);
  }
}

// From one integer type to another, the upper bits dropped or filled as C++ does.
template <class From, class To>
void convert_row(const void* from, void* to, int64_t n) {
  const From* a = static_cast<const From*>(from);
  To* b = static_cast<To*>(to);
  PQ_INDEPENDENT
  for (int64_t i = 0; i < n; ++i) b[i] = static_cast<To>(a[i]);
}
