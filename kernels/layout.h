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
  int64_t size[kMaxDims + 1];  // room for one that is about to be merged
  int64_t stride[kTracks][kMaxDims + 1];
  // > 0: the innermost dimension runs through the channels, over and over: channel = innermost index % period.
  int64_t period = 0;
};

struct Position {
  int64_t offset[kTracks];
};

// Where element `index` of the nest lies; `inner` gets its index in the innermost dimension.
PQ_INLINE Position locate(const Layout& layout, int64_t index, int64_t& inner) {
  Position position{};
  inner = 0;
  for (int d = layout.dims - 1; d >= 0; --d) {
    const int64_t i = d ? index % layout.size[d] : index;
    if (d) index /= layout.size[d];
    if (d == layout.dims - 1) inner = i;
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

// The last dimension joins the one before it where it continues it.
inline void settle_last_dim(Layout& layout) {
  if (layout.dims > 1 && mergeable(layout, layout.dims - 2, layout.dims - 1, kTracks)) {
    merge(layout, layout.dims - 2, layout.dims - 1);
    --layout.dims;
  }
  STD_TORCH_CHECK(layout.dims <= kMaxDims, "pytorch_quantizer takes at most ", kMaxDims,
                  " dimensions that don't continue one another in memory; make the tensor contiguous");
}

}  // namespace detail

// tensors: input, gradient (or null), output (or null), all of one shape. axis -1: per tensor.
// The row-major index is followed only where it is needed: it keeps other dimensions from merging.
inline Layout make_layout(const Tensor& input, const Tensor* gradient, const Tensor* output, int64_t axis, bool logical,
                          bool skip_axis = false) {
  Layout layout;
  const auto sizes = input.sizes();
  const Tensor* tensors[] = {&input, gradient, output};
  int64_t row_major = input.numel();  // elements from one index of a dimension to the next; no matter if there are none
  for (int64_t d = 0; d < input.dim(); ++d) {
    if (sizes[d]) row_major /= sizes[d];
    if (skip_axis && d == axis) continue;
    layout.numel *= sizes[d];
    if (sizes[d] == 1) continue;
    const int at = layout.dims++;
    layout.size[at] = sizes[d];
    for (int t = 0; t < 3; ++t) layout.stride[t][at] = tensors[t] ? tensors[t]->strides()[d] : 0;
    layout.stride[kLogical][at] = logical ? row_major : 0;
    layout.stride[kChannel][at] = d == axis ? 1 : 0;
    detail::settle_last_dim(layout);
  }
  detail::sort_dims(layout);
  detail::merge_dims(layout);
  detail::merge_period(layout);
  return layout;
}

// Whether a tensor's elements fill a piece of memory, each at a place of its own.
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

// Whether no two elements can share a place: each dimension steps over all that lies inside it.
inline bool has_own_places(const Tensor& x) {
  const Layout layout = make_layout(x, nullptr, nullptr, -1, false);
  int64_t covered = 1;
  for (int d = layout.dims - 1; d >= 0; --d) {
    if (layout.stride[kInput][d] < covered) return false;
    covered += (layout.size[d] - 1) * layout.stride[kInput][d];
  }
  return true;
}

// Whether one tensor lies behind all of the other in memory.
inline bool lie_apart(const Tensor& a, const Tensor& b) {
  const auto end = [](const Tensor& x) {
    int64_t elements = x.numel() ? 1 : 0;
    for (int64_t d = 0; elements && d < x.dim(); ++d) elements += (x.size(d) - 1) * x.stride(d);
    return static_cast<const char*>(x.const_data_ptr()) + elements * static_cast<int64_t>(x.element_size());
  };
  return end(a) <= static_cast<const char*>(b.const_data_ptr()) ||
         end(b) <= static_cast<const char*>(a.const_data_ptr()) || a.numel() == 0 || b.numel() == 0;
}

// Refuse an output whose elements share memory, and one that may overlap the input without being it.
inline void check_output(const Tensor& x, const Tensor& out) {
  STD_TORCH_CHECK(has_own_places(out), "out must not be an expanded tensor, nor one whose elements overlap");
  const bool same = x.const_data_ptr() == out.const_data_ptr() && same_strides(x, out);
  STD_TORCH_CHECK(same || lie_apart(x, out),
                  "out must be x itself or not overlap it: lie before or behind it in memory");
}

}  // namespace pq
