// table[index] of each lane of a vector, by the instruction set's own gather where it has one: compilers that tune for
// no CPU in particular take the lanes one by one. Overloaded by the vector's width, which is the instruction set's.
#pragma once

#include <cstdint>

#include "isa.h"

#if defined(PQ_X86)
#include <immintrin.h>
#endif

namespace pq {

using Floats4 = float __attribute__((vector_size(16)));
using Ints4 = int32_t __attribute__((vector_size(16)));

__attribute__((always_inline)) inline Floats4 look_up(const float* table, Ints4 index) {
  return Floats4{table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
}

#if defined(PQ_X86)
using Floats8 = float __attribute__((vector_size(32)));
using Ints8 = int32_t __attribute__((vector_size(32)));
using Floats16 = float __attribute__((vector_size(64)));
using Ints16 = int32_t __attribute__((vector_size(64)));

__attribute__((always_inline, target("avx2"))) inline Floats8 look_up(const float* table, Ints8 index) {
  return (Floats8)_mm256_i32gather_ps(table, (__m256i)index, sizeof(float));
}

__attribute__((always_inline, target("avx512f"))) inline Floats16 look_up(const float* table, Ints16 index) {
  // With a mask: without one GCC 12 warns of its own header.
  return (Floats16)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xFFFF, (__m512i)index, table, sizeof(float));
}
#endif

}  // namespace pq
