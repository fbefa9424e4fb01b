// A row of any type and stride to and from float32. Included once an instruction set by each_isa.h.
#include "convert.loops.h"

template <class T>
void load_row(const char* bytes, int64_t stride, float* to, int64_t n) {
  const T* from = reinterpret_cast<const T*>(bytes);
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kAtOnce <= n; i += kAtOnce) load_some(from + i, to + i);
  }
  for (; i < n; ++i) to[i] = to_float(from[i * stride]);
}

template <class T>
void store_row(const float* from, char* bytes, int64_t stride, int64_t n) {
  T* to = reinterpret_cast<T*>(bytes);
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kAtOnce <= n; i += kAtOnce) store_some(from + i, to + i);
  }
  for (; i < n; ++i) to[i * stride] = from_float<T>(from[i]);
}

#include "random.loops.h"
