// Random numbers of a row. Included once an instruction set by each_isa.h.

// Words of Philox in the lower halves of 64-bit lanes. What is in the upper halves is never looked at.
using Words = uint64_t __attribute__((vector_size(kRegister * sizeof(float))));
constexpr int kWords = kRegister / 2;
using FewInts = int32_t __attribute__((vector_size(kWords * sizeof(int32_t))));
using FewFloats = float __attribute__((vector_size(kWords * sizeof(float))));

// The lower halves multiplied: the instruction that compilers don't find in a product of lanes.
inline Words product(Words a, uint32_t b) {
#if PQ_REGISTER == 16
  return reinterpret_cast<Words>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(b)));
#elif PQ_REGISTER == 8
  return reinterpret_cast<Words>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(b)));
#else
  return (a & 0xFFFFFFFFu) * static_cast<uint64_t>(b);
#endif
}

// quantize.h's philox of kWords counters.
inline Words philox_words(Words counter, uint64_t seed) {
  Words a = counter, b = counter >> 32, c = {}, d = {};
  uint32_t key_a = static_cast<uint32_t>(seed), key_b = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Words low = product(a, 0xD2511F53u), high = product(c, 0xCD9E8D57u);
    a = (high >> 32) ^ b ^ key_a;
    b = high;
    c = (low >> 32) ^ d ^ key_b;
    d = low;
    key_a += 0x9E3779B9u;
    key_b += 0xBB67AE85u;
  }
  return a & 0xFFFFFFFFu;
}

// The numbers of the elements first, first + step … of a counter.
inline void uniform_row(Random first, uint64_t step, float* u, int64_t n) {
  Words counter;
  for (int k = 0; k < kWords; ++k) counter[k] = first.counter + static_cast<uint64_t>(k) * step;
  int64_t i = 0;
  for (; i + kWords <= n; i += kWords) {
    const Words words = philox_words(counter, first.seed) >> 8;
    const FewFloats numbers = __builtin_convertvector(__builtin_convertvector(words, FewInts), FewFloats) * 0x1p-24f;
    __builtin_memcpy(u + i, &numbers, sizeof numbers);
    counter += kWords * step;
  }
  for (; i < n; ++i) u[i] = uniform24({first.seed, first.counter + static_cast<uint64_t>(i) * step});
}
