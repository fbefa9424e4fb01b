// The ops on the CPU.
#include "../entries.h"

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CPU, m) { pq::register_ops(m); }
