// The schemas of all ops, nothing else. Loading the shared library registers them; Python needs no module object.
// axis -1: per tensor. spread and support: range.h's Spread and Support. rounding: 0 half to even, 1 half away from
// zero, 2 stochastic (quantize.h's Rounding). pytorch_quantizer/fallback.py repeats them for where nothing is built; a
// test compares the two.
#include <torch/csrc/stable/library.h>

#define PQ_GRID \
  "Tensor scale, Tensor zero_point, int qmin, int qmax, int axis, int rounding, SymInt seed, SymInt offset"
#define PQ_ONLINE                                                                                                  \
  "bool relu, int spread, float reach, int support, float ceiling, bool symmetric, int qmin, int qmax, int axis, " \
  "int rounding, SymInt seed, SymInt offset"

STABLE_TORCH_LIBRARY(pytorch_quantizer, m) {
  m.def("fake_quantize(Tensor x, " PQ_GRID ") -> Tensor");
  m.def("fake_quantize_(Tensor(a!) x, " PQ_GRID ") -> ()");
  m.def("fake_quantize_out(Tensor x, " PQ_GRID ", Tensor(a!) out) -> ()");
  m.def("fused_fake_quantize(Tensor x, Tensor? other, bool relu, " PQ_GRID ") -> Tensor");
  m.def("fused_fake_quantize_out(Tensor x, Tensor? other, bool relu, " PQ_GRID ", Tensor(a!) out) -> ()");
  m.def("fake_quantize_backward(Tensor grad, Tensor x, " PQ_GRID ") -> Tensor");
  m.def("fake_quantize_backward_out(Tensor grad, Tensor x, " PQ_GRID ", Tensor(a!) out) -> ()");
  m.def(
      "learnable_fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, "
      "int axis, float grad_scale) -> (Tensor, Tensor, Tensor)");
  m.def(
      "learnable_fake_quantize_backward_out(Tensor grad, Tensor x, Tensor scale, Tensor zero_point, int qmin, "
      "int qmax, int axis, float grad_scale, Tensor(a!) dx, Tensor(b!) dscale, Tensor(c!) dzero_point) -> ()");
  m.def("online_fake_quantize(Tensor x, " PQ_ONLINE ") -> (Tensor, Tensor, Tensor)");
  m.def("online_fake_quantize_out(Tensor x, " PQ_ONLINE ", Tensor(a!) out) -> (Tensor, Tensor)");
  m.def("quantize(Tensor x, " PQ_GRID ", ScalarType dtype) -> Tensor");
  m.def("dequantize(Tensor codes, Tensor scale, Tensor zero_point, int axis, ScalarType dtype) -> Tensor");
  m.def("tensor_statistics(Tensor x, int axis) -> Tensor");
  m.def("histogram(Tensor x, Tensor exponent, int bins, int axis) -> Tensor");
  m.def("growing_histogram(Tensor x, Tensor largest, Tensor counts, Tensor exponent, int axis) -> (Tensor, Tensor)");
  m.def("codebook_fake_quantize(Tensor x, Tensor levels, Tensor highest, int axis) -> Tensor");
  m.def("codebook_fake_quantize_out(Tensor x, Tensor levels, Tensor highest, int axis, Tensor(a!) out) -> ()");
  m.def("codebook_quantize(Tensor x, Tensor highest, int axis) -> Tensor");
  m.def("codebook_dequantize(Tensor codes, Tensor levels, int axis, ScalarType dtype) -> Tensor");
  m.def("pack(Tensor codes, int bits) -> Tensor");
  m.def("pack_out(Tensor codes, int bits, Tensor(a!) out) -> ()");
  m.def("unpack(Tensor packed, int bits, SymInt numel, bool signed, ScalarType dtype) -> Tensor");
  m.def("unpack_out(Tensor packed, int bits, bool signed, Tensor(a!) out) -> ()");
  m.def("cpu_capability() -> str");
}
