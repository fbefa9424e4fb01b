// Includes the file PQ_LOOPS once an instruction set, each time in a namespace of that name. Compilers make no
// FMA of what is written as two operations (-ffp-contract=off).
// Only what is written in PQ_LOOPS is compiled so: headers come before, or their inline functions would leak upwards.
#define PQ_REGISTER 4
namespace pq::baseline {
[[maybe_unused]] constexpr int kRegister = PQ_REGISTER;  // floats in a register
#include PQ_LOOPS
}  // namespace pq::baseline

#if defined(PQ_X86)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c,fma")
#endif
#define PQ_WIDE_ISA 1  // intrinsics of AVX2, F16C and FMA may be used
#undef PQ_REGISTER
#define PQ_REGISTER 8
namespace pq::avx2 {
[[maybe_unused]] constexpr int kRegister = PQ_REGISTER;  // floats in a register
#include PQ_LOOPS
}  // namespace pq::avx2
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c,fma"))), \
                             apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,fma,prefer-vector-width=512")
#endif
#undef PQ_REGISTER
#define PQ_REGISTER 16
namespace pq::avx512 {
[[maybe_unused]] constexpr int kRegister = PQ_REGISTER;  // floats in a register
#include PQ_LOOPS
}  // namespace pq::avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#undef PQ_WIDE_ISA
#endif  // PQ_X86
#undef PQ_REGISTER
#undef PQ_LOOPS
