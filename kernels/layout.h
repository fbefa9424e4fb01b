// The loop nest of an elementwise op over tensors of any strides: dimensions in memory order, merged where they can be.
// Shared by the CPU and CUDA drivers; allocates nothing.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>

#include "quantize.h"

namespace pq {

using torch::stable::Tensor;

constexpr int kMaxDims = 16;

// What is followed through the nest: where each tensor is, the row-major index, and the channel.
enum Track { kInput, kGradient, kOutput, kLogical, kChannel, kTracks };

struct Layout {
  int dims = 0;
  int64_t numel = 1;
  int64_t size[kMaxDims];
  int64_t stride[kTracks][kMaxDims];
  // > 0: the innermost dimension runs through the channels, over and over: channel = innermost index % period.
  int64_t period = 0;
};

struct Position {
  int64_t offset[kTracks];
};

// Where element `index` of the nest lies; `inner` gets its index in the innermost dimension.
PQ_INLINE Position locate(const Layout& layout, int64_t index, int64_t& inner) {
  Position position{};
  inner = layout.dims ? index % layout.size[layout.dims - 1] : 0;
  for (int d = layout.dims - 1; d >= 0; --d) {
    const int64_t i = index % layout.size[d];
    index /= layout.size[d];
    for (int t = 0; t < kTracks; ++t) position.offset[t] += i * layout.stride[t][d];
  }
  return position;
}

namespace detail {

inline bool goes_outside(const Layout& layout, int a, int b) {
  for (const int t : {kOutput, kInput}) {
    if (layout.stride[t][a] != layout.stride[t][b]) return layout.stride[t][a] > layout.stride[t][b];
  }
  return layout.size[a] > layout.size[b];
}

inline void swap_dims(Layout& layout, int a, int b) {
  std::swap(layout.size[a], layout.size[b]);
  for (auto& stride : layout.stride) std::swap(stride[a], stride[b]);
}

inline void sort_dims(Layout& layout) {
  for (int i = 1; i < layout.dims; ++i) {
    for (int d = i; d > 0 && goes_outside(layout, d, d - 1); --d) swap_dims(layout, d, d - 1);
  }
}

inline bool mergeable(const Layout& layout, int outer, int inner, int tracks) {
  for (int t = 0; t < tracks; ++t) {
    if (layout.stride[t][outer] != layout.stride[t][inner] * layout.size[inner]) return false;
  }
  return true;
}

// Make one dimension of `outer` and the following `inner`, with inner's strides.
inline void merge(Layout& layout, int outer, int inner) {
  layout.size[outer] *= layout.size[inner];
  for (auto& stride : layout.stride) stride[outer] = stride[inner];
}

inline void merge_dims(Layout& layout) {
  int last = 0;
  for (int d = 1; d < layout.dims; ++d) {
    if (mergeable(layout, last, d, kTracks)) {
      merge(layout, last, d);
    } else {
      swap_dims(layout, ++last, d);
    }
  }
  layout.dims = layout.dims ? last + 1 : 0;
}

// Channels innermost (channels-last): every outer dimension that continues them joins, the channel counted modulo C.
inline void merge_period(Layout& layout) {
  if (!layout.dims || layout.stride[kChannel][layout.dims - 1] == 0) return;
  layout.period = layout.size[layout.dims - 1];
  while (layout.dims > 1 && mergeable(layout, layout.dims - 2, layout.dims - 1, kChannel)) {
    merge(layout, layout.dims - 2, layout.dims - 1);
    --layout.dims;
  }
}

inline void append_dim(Layout& layout, int64_t size) {
  STD_TORCH_CHECK(layout.dims < kMaxDims, "pytorch_quantizer takes at most ", kMaxDims,
                  " dimensions that can't be merged; make the tensor contiguous");
  layout.size[layout.dims++] = size;
}

}  // namespace detail

// tensors: input, gradient (or null), output (or null), all of one shape. axis -1: per tensor.
// The row-major index is followed only where it is needed: it keeps other dimensions from merging.
inline Layout make_layout(const Tensor& input, const Tensor* gradient, const Tensor* output, int64_t axis, bool logical,
                          bool skip_axis = false) {
  Layout layout;
  const auto sizes = input.sizes();
  const Tensor* tensors[] = {&input, gradient, output};
  int64_t row_major = 1;
  int64_t row_major_strides[64];
  for (int64_t d = input.dim() - 1; d >= 0; --d) {
    row_major_strides[d] = row_major;
    row_major *= sizes[d];
  }
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (skip_axis && d == axis) continue;
    layout.numel *= sizes[d];
    if (sizes[d] == 1) continue;
    detail::append_dim(layout, sizes[d]);
    for (int t = 0; t < 3; ++t) layout.stride[t][layout.dims - 1] = tensors[t] ? tensors[t]->strides()[d] : 0;
    layout.stride[kLogical][layout.dims - 1] = logical ? row_major_strides[d] : 0;
    layout.stride[kChannel][layout.dims - 1] = d == axis ? 1 : 0;
  }
  detail::sort_dims(layout);
  detail::merge_dims(layout);
  detail::merge_period(layout);
  return layout;
}

// The extent of memory a tensor covers, and whether each address in it is used exactly once.
inline bool is_dense(const Tensor& x) {
  const Layout layout = make_layout(x, nullptr, nullptr, -1, false);
  return layout.dims == 0 || (layout.dims == 1 && layout.stride[kInput][0] == 1);
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// Refuse an output whose elements share memory, and one that overlaps the input without being it.
inline void check_output(const Tensor& x, const Tensor& out) {
  for (int64_t d = 0; d < out.dim(); ++d) {
    STD_TORCH_CHECK(out.size(d) <= 1 || out.stride(d) != 0, "out must not be an expanded tensor");
  }
  const char* a = static_cast<const char*>(x.const_data_ptr());
  const char* b = static_cast<const char*>(out.const_data_ptr());
  const int64_t bytes = x.numel() * static_cast<int64_t>(x.element_size());
  if ((a == b && same_strides(x, out)) || a + bytes <= b || b + bytes <= a) return;
  STD_TORCH_CHECK(!is_dense(x) || !is_dense(out), "out must be x itself or not overlap it");
}

}  // namespace pq
