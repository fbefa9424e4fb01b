// Conversions of rows and the channels' grids: what all elementwise CPU ops share.
#include "rows.h"

#include "convert.h"
#include "isa.h"

#define PQ_LOOPS "rows.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

Source::Convert loader(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return PQ_PICK(load_row<float>);
    case ScalarType::Half: return PQ_PICK(load_row<HalfBits>);
    case ScalarType::BFloat16: return PQ_PICK(load_row<BFloat16Bits>);
    case ScalarType::Byte: return PQ_PICK(load_row<uint8_t>);
    case ScalarType::Char: return PQ_PICK(load_row<int8_t>);
    case ScalarType::Short: return PQ_PICK(load_row<int16_t>);
    case ScalarType::Int: return PQ_PICK(load_row<int32_t>);
    default: STD_TORCH_CHECK(false, "pytorch_quantizer can't read this dtype");
  }
}

Sink::Convert storer(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return PQ_PICK(store_row<float>);
    case ScalarType::Half: return PQ_PICK(store_row<HalfBits>);
    case ScalarType::BFloat16: return PQ_PICK(store_row<BFloat16Bits>);
    case ScalarType::Byte: return PQ_PICK(store_row<uint8_t>);
    case ScalarType::Char: return PQ_PICK(store_row<int8_t>);
    case ScalarType::Short: return PQ_PICK(store_row<int16_t>);
    case ScalarType::Int: return PQ_PICK(store_row<int32_t>);
    default: STD_TORCH_CHECK(false, "pytorch_quantizer can't write this dtype");
  }
}

int64_t inner_stride(const Layout& layout, Track track) {
  return layout.dims ? layout.stride[track][layout.dims - 1] : 1;
}

}  // namespace

Source make_source(const Tensor& x, const Layout& layout, Track track) {
  const int64_t stride = inner_stride(layout, track);
  const bool direct = x.scalar_type() == ScalarType::Float && stride == 1;
  return {static_cast<const char*>(x.const_data_ptr()), stride, static_cast<int64_t>(x.element_size()),
          direct ? nullptr : loader(x.scalar_type())};
}

Sink make_sink(const Tensor& y, const Layout& layout) {
  const int64_t stride = inner_stride(layout, kOutput);
  const bool direct = y.scalar_type() == ScalarType::Float && stride == 1;
  return {static_cast<char*>(y.mutable_data_ptr()), stride, static_cast<int64_t>(y.element_size()),
          direct ? nullptr : storer(y.scalar_type())};
}

HalfRounding::HalfRounding(ScalarType dtype)
    : store(dtype == ScalarType::Float ? nullptr : storer(dtype)),
      load(dtype == ScalarType::Float ? nullptr : loader(dtype)) {}

const float* draw(const GridArguments& arguments, const Layout& layout, const Row& row, float* buffer) {
  if (!arguments.stochastic()) return nullptr;
  const int64_t step = layout.dims ? layout.stride[kLogical][layout.dims - 1] : 0;
  const Random first{arguments.random.seed,
                     arguments.random.counter + static_cast<uint64_t>(row.position.offset[kLogical])};
  PQ_PICK(uniform_row)(first, static_cast<uint64_t>(step), buffer, row.n);
  return buffer;
}

ChannelGrids::ChannelGrids(const GridArguments& arguments, const Layout& layout)
    : qmin_(arguments.qmin), qmax_(arguments.qmax), period_(layout.period) {
  const float* scale = static_cast<const float*>(arguments.scale.const_data_ptr());
  const void* zero_point = arguments.zero_point.const_data_ptr();
  const bool learned = arguments.zero_point.scalar_type() == ScalarType::Float;
  const int64_t scale_stride = parameter_stride(arguments.scale);
  const int64_t zero_stride = parameter_stride(arguments.zero_point);
  const int64_t channels = arguments.scale.numel();
  const int64_t entries = period_ ? period_ + std::min(kChannelsRow, layout.numel) : channels;
  scale_.resize(entries);
  zero_point_.resize(entries);
  for (int64_t i = 0, c = 0; i < entries; ++i, c = c + 1 == channels ? 0 : c + 1) {
    scale_[i] = valid_scale(scale[c * scale_stride]);
    const int64_t at = c * zero_stride;
    const float z = learned ? whole_zero_point(static_cast<const float*>(zero_point)[at], qmin_, qmax_)
                            : static_cast<float>(static_cast<const int32_t*>(zero_point)[at]);
    zero_point_[i] =
        z != z ? NAN : z;  // of all NaNs the one whose lower half is 0: fake_quantize_bfloat16 counts on it
  }
}

}  // namespace pq
