// The CPU driver of ops that gather numbers of a tensor, per tensor or per channel: chunks of a channel's elements,
// cut by the shape alone, never by the number of threads. What is gathered is the op's own file's business.
#pragma once

#include <cstring>

#include "rows.h"

namespace pq {

constexpr int64_t kChunk = kRow;       // elements of one channel, at most
constexpr int64_t kChunkOfRows = 256;  // rows of channels, where channels are innermost

// The two ways through a tensor. Channel by channel: `layout` walks one channel's elements, which are cut into chunks
// where memory does not go on: a run longer than a chunk into equal pieces, short ones so many to a chunk. Channels
// innermost and the tensor dense: rows of all channels, which reads memory in order.
struct Walk {
  Layout layout;
  Source source;
  bool rows, channels_outside;
  int64_t channels, channel_stride, per_channel, chunks;
  int64_t unit, pieces, piece;  // every `unit` elements are cut into `pieces` of `piece` elements, the last one shorter

  int64_t begin(int64_t chunk) const { return chunk / pieces * unit + chunk % pieces * piece; }
  int64_t end(int64_t chunk) const {
    return std::min({begin(chunk) + piece, (chunk / pieces + 1) * unit, per_channel});
  }
};

inline void cut(Walk& walk) {
  const int64_t run = std::max<int64_t>(1, walk.layout.dims ? walk.layout.size[walk.layout.dims - 1] : 1);
  walk.unit = run < kChunk ? kChunk / run * run : run;
  walk.pieces = (walk.unit + kChunk - 1) / kChunk;
  constexpr int64_t kEven = 16;  // whole registers
  walk.piece = ((walk.unit + walk.pieces - 1) / walk.pieces + kEven - 1) / kEven * kEven;
  walk.chunks = (walk.per_channel + walk.unit - 1) / walk.unit * walk.pieces;
}

inline Walk make_walk(const Tensor& x, int64_t axis, bool by_rows = true) {
  Walk walk;
  walk.channels = axis < 0 ? 1 : x.size(axis);
  walk.channel_stride = axis < 0 ? 0 : x.stride(axis);
  walk.per_channel = walk.channels ? x.numel() / walk.channels : 0;
  walk.layout = make_layout(x, nullptr, nullptr, axis, false);
  walk.rows = by_rows && walk.layout.period > 0 && walk.layout.dims == 1 && walk.layout.stride[kInput][0] == 1;
  if (!walk.rows) walk.layout = make_layout(x, nullptr, nullptr, axis, false, /*skip_axis=*/true);
  walk.channels_outside = walk.layout.dims == 0 || walk.channel_stride > walk.layout.stride[kInput][0];
  walk.source = make_source(x, walk.layout, kInput);
  cut(walk);
  if (walk.rows) walk.chunks = (walk.per_channel + kChunkOfRows - 1) / kChunkOfRows;
  return walk;
}

// A channel's elements [begin, end) in a row: where they lie, or gathered in `buffer`.
inline const float* gather(const Walk& walk, int64_t channel, int64_t begin, int64_t end, float* buffer) {
  const int64_t base = channel * walk.channel_stride;
  const float* direct = nullptr;
  int64_t done = 0;
  walk_rows(walk.layout, begin, end, [&](const Row& row) {
    const float* from = walk.source.load(base + row.position.offset[kInput], row.n, buffer + done);
    if (row.n == end - begin) {
      direct = from;
    } else if (from != buffer + done) {
      std::memcpy(buffer + done, from, row.n * sizeof(float));
    }
    done += row.n;
  });
  return direct ? direct : buffer;
}

// Chunks of one channel that a thread takes at a time, at least.
inline int64_t chunk_grain(const Walk& walk) {
  const int64_t work = std::max<int64_t>(1, std::min(kChunk, walk.per_channel));
  return std::max<int64_t>(1, kRowsPerThread * kRow / work);
}

}  // namespace pq
