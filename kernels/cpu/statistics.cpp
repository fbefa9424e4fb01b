// tensor_statistics on the CPU. The tensor is cut into chunks by its shape alone, never by the number of threads; a
// chunk's sums go into fixed lanes, the chunks' sums are added in a tree: the same bits on any machine of any size.
#include "../statistics.h"

#include "../ops.h"
#include "isa.h"
#include "lanes.h"
#include "one_read.h"
#include "walk.h"

#if defined(PQ_X86)
#include <immintrin.h>
#endif

#define PQ_LOOPS "statistics.loops.h"
#include "each_isa.h"

namespace pq {

namespace {

constexpr int64_t kConverted = 4 * kRow;  // elements of a half type brought into float32 at a time

// body(chunk, elements, n) for each chunk of each channel.
template <class Body>
void for_each_gathered(const Walk& walk, const Body& body) {
  for_each_chunk(walk, [&](const Chunk& chunk) {
    alignas(64) float buffer[kChunk];
    body(chunk, gather(walk, chunk.channel, chunk.begin, chunk.end, buffer), chunk.end - chunk.begin);
  });
}

// body(chunk, elements, rows): rows of all channels, `channels` apart. What must be converted comes a few rows at a
// time.
template <class Body>
void for_each_chunk_of_rows(const Walk& walk, const Body& body) {
  const int64_t grain = std::max<int64_t>(1, kRowsPerThread * kRow / (kChunkOfRows * walk.channels));
  const int64_t at_once = walk.source.convert ? std::max<int64_t>(1, kConverted / walk.channels) : kChunkOfRows;
  torch::stable::parallel_for(0, walk.chunks, grain, [&](int64_t first, int64_t last) {
    std::vector<float> buffer(walk.source.convert ? at_once * walk.channels : 0);
    for (int64_t chunk = first; chunk < last; ++chunk) {
      const int64_t end = std::min((chunk + 1) * kChunkOfRows, walk.per_channel);
      for (int64_t row = chunk * kChunkOfRows; row < end; row += at_once) {
        const int64_t rows = std::min(at_once, end - row), n = rows * walk.channels;
        body(chunk, walk.source.load(row * walk.channels, n, buffer.data()), rows);
      }
    }
  });
}

void read_first(const Walk& walk, double* out) {
  const int64_t channels = walk.channels;
  Partials partials(walk, kFirst);
  const int64_t step = partials.step();
  if (walk.rows || !walk.chunks) {
    for (int64_t chunk = 0; chunk < std::max<int64_t>(1, walk.chunks); ++chunk) {
      for (int64_t c = 0; c < channels; ++c) First().write(partials.at(chunk, c), step);
    }
  }
  if (walk.rows) {
    const auto add = PQ_PICK(first_rows);
    for_each_chunk_of_rows(walk, [&](int64_t chunk, const float* x, int64_t rows) {
      add(x, rows, channels, channels, partials.at(chunk, 0), step);
    });
  } else {
    const auto sum = PQ_PICK(first_chunk);
    for_each_gathered(walk,
                      [&](const Chunk& chunk, const float* x, int64_t n) { sum(x, n, partials.at(chunk), step); });
  }
  partials.join([&](double* into, const double* from) {
    First total = First::read(into, step);
    total.add(First::read(from, step));
    total.write(into, step);
  });
  for (int64_t c = 0; c < channels; ++c) {
    First::read(partials.at(0, c), step).finish(static_cast<double>(walk.per_channel), out + c, channels);
  }
}

void read_second(const Walk& walk, double* out) {
  const int64_t channels = walk.channels;
  const double* mean = out + kMeanOut * channels;
  Partials partials(walk, kSecond);
  const int64_t step = partials.step();
  if (walk.rows) {
    const auto add = PQ_PICK(second_rows);
    for_each_chunk_of_rows(walk, [&](int64_t chunk, const float* x, int64_t rows) {
      add(x, rows, channels, channels, mean, partials.at(chunk, 0), step);
    });
  } else {
    const auto sum = PQ_PICK(second_chunk);
    for_each_gathered(walk, [&](const Chunk& chunk, const float* x, int64_t n) {
      sum(x, n, mean[chunk.channel], partials.at(chunk), step);
    });
  }
  partials.join([&](double* into, const double* from) {
    into[0] += from[0];
    into[step] += from[step];
  });
  for (int64_t c = 0; c < channels; ++c) {
    const double* sums = partials.at(0, c);
    finish_second(sums[0], sums[step], static_cast<double>(walk.per_channel), out + c, channels);
  }
}

// One read for both, unless the mean turns out to lie outside the middle, or so far from 0 that Σx² says little of the
// variance: then only the first read's rows are settled, to the same bits, and the answer is false.
bool read_once(const Walk& walk, Middle middle, double* out) {
  const double n = static_cast<double>(walk.per_channel);
  Partials partials(walk, kOnce);
  std::vector<std::vector<float>> kept(walk.chunks);
  const auto sum = PQ_PICK(once_chunk);
  for_each_gathered(walk, [&](const Chunk& chunk, const float* x, int64_t size) {
    float within[kChunk + 3];
    const int64_t count = sum(x, size, middle, within, partials.at(chunk));
    kept[chunk.place].assign(within, within + count);
  });
  partials.join([](double* into, const double* from) {
    First first = First::read(into, 1);
    Once once = Once::read(into);
    first.add(First::read(from, 1));
    once.add(Once::read(from));
    first.write(into, 1);
    once.write(into);
  });
  const First first = First::read(partials.at(0, 0), 1);
  const Once once = Once::read(partials.at(0, 0));
  first.finish(n, out, 1);
  const double mean = out[kMeanOut], square = once.square - mean * first.sum;
  if (!middle.holds(mean) || far_from_zero(mean, square / n)) return false;
  double excess = once.excess + once.above * (middle.high - mean);
  const auto over = PQ_PICK(excess_over);
  for (const auto& each : kept) excess += over(mean, each.data(), static_cast<int64_t>(each.size()));
  finish_second(2.0 * excess, square, n, out, 1);
  return true;
}

}  // namespace

Tensor statistics_of(const Tensor& x, int64_t axis, bool spread) {
  const Walk walk = make_walk(x, axis);
  const int64_t shape[] = {kStatistics, walk.channels};
  Tensor out = torch::stable::new_empty(x, {shape, axis < 0 ? 1u : 2u}, ScalarType::Double);
  double* data = static_cast<double*>(out.mutable_data_ptr());
  const std::optional<Middle> middle = spread ? find_middle(walk) : std::nullopt;
  if (middle && read_once(walk, *middle, data)) return out;
  if (!middle) read_first(walk, data);
  if (spread) read_second(walk, data);
  return out;
}

}  // namespace pq
