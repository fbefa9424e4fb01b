// Lanes that sums are gathered in: their width is fixed, whatever the registers', for it fixes the order in which
// numbers add. Every instruction set gets the same bits.
#pragma once

#include <cstdint>

namespace pq {

constexpr int kLanes = 4;  // of the sums
constexpr int kStep = 8;   // elements a turn of the loops: two sets of lanes, so that no addition waits for the last
using FloatLanes = float __attribute__((vector_size(kLanes * sizeof(float))));
using DoubleLanes = double __attribute__((vector_size(kLanes * sizeof(double))));
using LongLanes = int64_t __attribute__((vector_size(kLanes * sizeof(int64_t))));

}  // namespace pq

// Written out, compilers make one instruction of it, unlike __builtin_convertvector.
#define PQ_WIDENED(v) \
  DoubleLanes { (v)[0], (v)[1], (v)[2], (v)[3] }
