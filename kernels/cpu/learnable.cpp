// The gradients of fake_quantize where scale and zero point are learned (LSQ, LSQ+) on the CPU, in one pass: dx, and
// the sums behind ds and dz in float64, over chunks that the shape alone cuts.

#include "../ops.h"
#include "isa.h"
#include "lanes.h"
#include "walk.h"

#if defined(PQ_X86)
#include <immintrin.h>
#endif

#define PQ_LOOPS "learnable.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

constexpr int64_t kSums = 2;  // Σ g·slope, Σ outside

// What a row needs besides its tensors.
struct Scratch {
  alignas(64) float x[kRow], g[kRow], dx[kRow], slope[kRow], outside[kRow];
};

struct Tensors {
  Source x, gradient;
  Sink dx;

  Tensors(const Tensor& x_, const Tensor& grad, const Tensor& dx_, const Layout& layout)
      : x(make_source(x_, layout, kInput)),
        gradient(make_source(grad, layout, kGradient)),
        dx(make_sink(dx_, layout)) {}
};

// A chunk of one channel into its two sums.
void channel_chunk(const Walk& walk, const Tensors& tensors, OneGrid grid, const Chunk& chunk, double* sums) {
  const auto gradients = PQ_PICK(learned_row<OneGrid>);
  const auto add = PQ_PICK(sum_row);
  Scratch scratch;
  walk_rows(walk.layout, chunk.begin, chunk.end, [&](const Row& row) {
    int64_t at[kTracks];
    for (const int t : {kInput, kGradient, kOutput})
      at[t] = row.position.offset[t] + chunk.channel * walk.channel_stride[t];
    const float* x = tensors.x.load(at[kInput], row.n, scratch.x);
    const float* g = tensors.gradient.load(at[kGradient], row.n, scratch.g);
    float* dx = tensors.dx.target(at[kOutput], scratch.dx);
    gradients(g, x, dx, scratch.slope, scratch.outside, row.n, grid);
    add(g, scratch.slope, scratch.outside, row.n, sums);
    tensors.dx.store(at[kOutput], dx, row.n);
  });
}

// Rows [begin, end) of all channels into each channel's two sums, `channels` apart.
void chunk_of_rows(const Walk& walk, const Tensors& tensors, const ChannelGrids& grids, int64_t begin, int64_t end,
                   double* sums) {
  const auto gradients = PQ_PICK(learned_row<GridEach>);
  const auto add = PQ_PICK(sum_channels);
  Scratch scratch;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t c = 0; c < walk.channels; c += kRow) {
      const int64_t n = std::min(kRow, walk.channels - c), at = row * walk.channels + c;
      const float* x = tensors.x.load(at, n, scratch.x);
      const float* g = tensors.gradient.load(at, n, scratch.g);
      float* dx = tensors.dx.target(at, scratch.dx);
      gradients(g, x, dx, scratch.slope, scratch.outside, n, grids.from(c));
      add(g, scratch.slope, scratch.outside, n, sums + c, walk.channels);
      tensors.dx.store(at, dx, n);
    }
  }
}

// Writes dx; of the result, chunk 0 holds Σ g·slope and Σ outside of every channel.
Partials sum_gradients(const Tensor& grad, const Tensor& x, const GridArguments& arguments, const Tensor& dx) {
  const Walk walk = make_walk(x, arguments.axis, /*by_rows=*/true, &grad, &dx);
  const Tensors tensors(x, grad, dx, walk.layout);
  const ChannelGrids grids(arguments, walk.layout);
  Partials partials(walk, kSums);
  if (walk.rows) {
    const int64_t grain = std::max<int64_t>(1, kRowsPerThread * kRow / (kChunkOfRows * walk.channels));
    torch::stable::parallel_for(0, walk.chunks, grain, [&](int64_t first, int64_t last) {
      for (int64_t chunk = first; chunk < last; ++chunk) {
        const int64_t begin = chunk * kChunkOfRows, end = std::min(begin + kChunkOfRows, walk.per_channel);
        chunk_of_rows(walk, tensors, grids, begin, end, partials.at(chunk, 0));
      }
    });
  } else {
    for_each_chunk(walk, [&](const Chunk& chunk) {
      channel_chunk(walk, tensors, grids.of(chunk.channel), chunk, partials.at(chunk));
    });
  }
  const int64_t step = partials.step();
  partials.join([&](double* into, const double* from) {
    into[0] += from[0];
    into[step] += from[step];
  });
  return partials;
}

}  // namespace

void learned_gradients_into(const Tensor& grad, const Tensor& x, const GridArguments& arguments, double grad_scale,
                            const Tensor& dx, const Tensor& ds, const Tensor& dz) {
  Partials partials = sum_gradients(grad, x, arguments, dx);
  const float* scale = static_cast<const float*>(arguments.scale.const_data_ptr());
  float* scale_gradient = static_cast<float*>(ds.mutable_data_ptr());
  float* zero_gradient = static_cast<float*>(dz.mutable_data_ptr());
  const int64_t channels = arguments.scale.numel(), stride = parameter_stride(arguments.scale);
  for (int64_t c = 0; c < channels; ++c) {
    const double s = valid_scale(scale[c * stride]), *sums = partials.at(0, c);
    scale_gradient[c] = static_cast<float>(grad_scale * sums[0]);
    zero_gradient[c] = static_cast<float>(grad_scale * (-s * sums[partials.step()]));
  }
}

}  // namespace pq
