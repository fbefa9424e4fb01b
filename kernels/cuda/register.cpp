// The ops on CUDA.
#include "../entries.h"

STABLE_TORCH_LIBRARY_IMPL(pytorch_quantizer, CUDA, m) { pq::register_ops(m); }
