// Which instruction set runs, decided when an op is called. Loops are compiled once for each (see each_isa.h).
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define PQ_X86 1
#endif

#if defined(__clang__)
#define PQ_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#define PQ_UNROLLED _Pragma("unroll")
#define PQ_ROLLED _Pragma("nounroll")
#else
#define PQ_INDEPENDENT _Pragma("GCC ivdep")
#define PQ_UNROLLED _Pragma("GCC unroll 8")
#define PQ_ROLLED _Pragma("GCC unroll 1")
#endif

namespace pq {

enum class Isa { baseline, avx2, avx512 };

// The best this machine has; PQ_CPU_CAPABILITY (baseline, avx2, avx512) lowers it, for tests. Never raises it.
Isa isa();

template <class T>
T pick([[maybe_unused]] T avx512, [[maybe_unused]] T avx2, T baseline) {
#if defined(PQ_X86)
  switch (isa()) {
    case Isa::avx512: return avx512;
    case Isa::avx2: return avx2;
    case Isa::baseline: break;
  }
#endif
  return baseline;
}

}  // namespace pq

// PQ_PICK(f<T>): the loop f<T> of the namespace that fits this machine.
#if defined(PQ_X86)
#define PQ_PICK(...) pq::pick(&pq::avx512::__VA_ARGS__, &pq::avx2::__VA_ARGS__, &pq::baseline::__VA_ARGS__)
#else
#define PQ_PICK(...) (&pq::baseline::__VA_ARGS__)
#endif
