// Finds the instruction set, and tells Python.
#include "isa.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>
#include <utility>

namespace pq {

namespace {

Isa best_isa() {
#if defined(PQ_X86)
  __builtin_cpu_init();
  for (const int has :
       {__builtin_cpu_supports("avx2"), __builtin_cpu_supports("f16c"), __builtin_cpu_supports("fma")}) {
    if (!has) return Isa::baseline;
  }
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  return Isa::avx2;
#else
  return Isa::baseline;
#endif
}

std::string cpu_capability() { return pick<const char*>("avx512", "avx2", "baseline"); }

}  // namespace

Isa isa() {
  static const Isa best = best_isa();
  const char* wanted = std::getenv("PQ_CPU_CAPABILITY");
  if (!wanted) return best;
  for (const auto& [name, limit] :
       {std::pair{"baseline", Isa::baseline}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}}) {
    if (!std::strcmp(wanted, name)) return limit < best ? limit : best;
  }
  STD_TORCH_CHECK(false, "PQ_CPU_CAPABILITY must be baseline, avx2 or avx512, got ", wanted);
}

}  // namespace pq

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&pq::cpu_capability));
}
