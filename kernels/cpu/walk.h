// The CPU driver of ops that gather numbers of a tensor, per tensor or per channel: chunks of a channel's elements,
// cut by the shape alone, never by the number of threads. What is gathered is the op's own file's business.
#pragma once

#include <cstring>

#include "rows.h"

namespace pq {

constexpr int64_t kChunk = 4 * kRow;   // elements of one channel, at most
constexpr int64_t kShortRun = 512;     // shorter runs are gathered, many to a chunk
constexpr int64_t kChunkOfRows = 256;  // rows of channels, where channels are innermost

// The two ways through a tensor. Channel by channel: `layout` walks one channel's elements, which are cut into chunks
// where memory does not go on: a run longer than a chunk into equal pieces, short ones so many to a chunk. Channels
// innermost and the tensor dense: rows of all channels, which reads memory in order.
struct Walk {
  Layout layout;
  Source source;
  bool rows, channels_outside;
  int64_t channels, per_channel, chunks;
  int64_t channel_stride[kTracks];
  int64_t unit, runs, pieces, piece;  // each run of `unit` elements is cut into pieces, the last one shorter

  int64_t begin(int64_t run, int64_t at) const { return run * unit + at * piece; }
  int64_t end(int64_t run, int64_t at) const {
    return std::min({begin(run, at) + piece, (run + 1) * unit, per_channel});
  }
  int64_t begin(int64_t chunk) const { return begin(chunk / pieces, chunk % pieces); }
  int64_t end(int64_t chunk) const { return end(chunk / pieces, chunk % pieces); }
  // In the order of memory: all pieces of a run, then the next channel's, then the next run's, unless channels lie
  // outermost.
  int64_t place(int64_t channel, int64_t run, int64_t at) const {
    return (channels_outside ? channel * runs + run : run * channels + channel) * pieces + at;
  }
};

inline void cut(Walk& walk) {
  const int64_t run = std::max<int64_t>(1, walk.layout.dims ? walk.layout.size[walk.layout.dims - 1] : 1);
  walk.unit = run < kShortRun ? kChunk / run * run : run;
  walk.pieces = (walk.unit + kChunk - 1) / kChunk;
  constexpr int64_t kEven = 16;  // whole registers
  walk.piece = ((walk.unit + walk.pieces - 1) / walk.pieces + kEven - 1) / kEven * kEven;
  walk.runs = (walk.per_channel + walk.unit - 1) / walk.unit;
  walk.chunks = walk.runs * walk.pieces;
}

// gradient, output: what else is read and written along with x, or null.
inline Walk make_walk(const Tensor& x, int64_t axis, bool by_rows = true, const Tensor* gradient = nullptr,
                      const Tensor* output = nullptr) {
  Walk walk;
  walk.channels = axis < 0 ? 1 : x.size(axis);
  const Tensor* tensors[] = {&x, gradient, output};
  for (const int track : {kInput, kGradient, kOutput}) {
    walk.channel_stride[track] = axis < 0 || !tensors[track] ? 0 : tensors[track]->stride(axis);
  }
  walk.per_channel = walk.channels ? x.numel() / walk.channels : 0;
  walk.layout = make_layout(x, gradient, output, axis, false);
  walk.rows = by_rows && walk.layout.period > 0 && walk.layout.dims == 1;
  for (const int track : {kInput, kGradient, kOutput}) {
    walk.rows = walk.rows && (!tensors[track] || walk.layout.stride[track][0] == 1);
  }
  if (!walk.rows) walk.layout = make_layout(x, gradient, output, axis, false, /*skip_axis=*/true);
  walk.channels_outside = walk.layout.dims == 0 || walk.channel_stride[kInput] > walk.layout.stride[kInput][0];
  walk.source = make_source(x, walk.layout, kInput);
  cut(walk);
  if (walk.rows) walk.chunks = (walk.per_channel + kChunkOfRows - 1) / kChunkOfRows;
  return walk;
}

// A channel's elements [begin, end) in a row: where they lie, or gathered in `buffer`.
inline const float* gather(const Walk& walk, int64_t channel, int64_t begin, int64_t end, float* buffer) {
  const int64_t base = channel * walk.channel_stride[kInput];
  const float* direct = nullptr;
  int64_t done = 0;
  walk_rows(
      walk.layout, begin, end,
      [&](const Row& row) {
        const float* from = walk.source.load(base + row.position.offset[kInput], row.n, buffer + done);
        if (row.n == end - begin) {
          direct = from;
        } else if (from != buffer + done) {
          std::memcpy(buffer + done, from, row.n * sizeof(float));
        }
        done += row.n;
      },
      kChunk);
  return direct ? direct : buffer;
}

// Chunks of one channel that a thread takes at a time, at least.
inline int64_t chunk_grain(const Walk& walk) {
  const int64_t work = std::max<int64_t>(1, std::min(kChunk, walk.per_channel));
  return std::max<int64_t>(1, kRowsPerThread * kRow / work);
}

// A chunk of a channel, its elements [begin, end): the place-th in the order of memory. Going on to the next one costs
// additions alone, no division.
struct Chunk {
  int64_t place, channel, run, piece, begin, end;

  Chunk(const Walk& walk, int64_t place_) : place(place_), piece(place_ % walk.pieces) {
    const int64_t at = place / walk.pieces;
    channel = walk.channels_outside ? at / walk.runs : at % walk.channels;
    run = walk.channels_outside ? at % walk.runs : at / walk.channels;
    settle(walk);
  }

  void advance(const Walk& walk) {
    ++place;
    if (++piece == walk.pieces) {
      piece = 0;
      walk.channels_outside ? step(run, walk.runs, channel) : step(channel, walk.channels, run);
    }
    settle(walk);
  }

 private:
  static void step(int64_t& inner, int64_t size, int64_t& outer) {
    if (++inner == size) inner = 0, ++outer;
  }
  void settle(const Walk& walk) {
    begin = walk.begin(run, piece);
    end = walk.end(run, piece);
  }
};

// body(chunk) for each chunk of each channel, in that order, over torch's threads.
template <class Body>
void for_each_chunk(const Walk& walk, const Body& body) {
  torch::stable::parallel_for(0, walk.channels * walk.chunks, chunk_grain(walk), [&](int64_t first, int64_t last) {
    for (Chunk chunk(walk, first); chunk.place < last; chunk.advance(walk)) body(chunk);
  });
}

// Partial sums, `numbers` a chunk and channel, `step()` apart. Rows of channels: side by side, as they are gathered;
// else in the order in which chunks are, so that a thread writes neighbours.
class Partials {
 public:
  Partials(const Walk& walk, int64_t numbers)
      : walk_(walk), numbers_(numbers), sums_(std::max<int64_t>(1, walk.chunks) * numbers * walk.channels) {}

  int64_t step() const { return walk_.rows ? walk_.channels : 1; }
  double* at(const Chunk& chunk) { return sums_.data() + chunk.place * numbers_; }
  double* at(int64_t chunk, int64_t channel) {
    if (walk_.rows) return sums_.data() + chunk * numbers_ * walk_.channels + channel;
    return sums_.data() + walk_.place(channel, chunk / walk_.pieces, chunk % walk_.pieces) * numbers_;
  }

  // add(into, from) joins two chunks of a channel; chunk 0 ends with the total. A tree, so that the error grows with
  // the logarithm of the number of chunks.
  template <class Add>
  void join(const Add& add) {
    for (int64_t apart = 1; apart < walk_.chunks; apart *= 2) {
      for (int64_t i = 0; i + apart < walk_.chunks; i += 2 * apart) {
        for (int64_t c = 0; c < walk_.channels; ++c) add(at(i, c), at(i + apart, c));
      }
    }
  }

 private:
  Walk walk_;
  int64_t numbers_;
  std::vector<double> sums_;
};

}  // namespace pq
