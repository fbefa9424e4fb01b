// A row of any type and stride to and from float32. Included once an instruction set by each_isa.h.

template <class T>
void load_row(const char* bytes, int64_t stride, float* to, int64_t n) {
  const T* from = reinterpret_cast<const T*>(bytes);
  if (stride == 1) {
    PQ_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i * stride]);
  }
}

template <class T>
void store_row(const float* from, char* bytes, int64_t stride, int64_t n) {
  T* to = reinterpret_cast<T*>(bytes);
  if (stride == 1) {
    PQ_INDEPENDENT
    for (int64_t i = 0; i < n; ++i) to[i] = from_float<T>(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i * stride] = from_float<T>(from[i]);
  }
}
