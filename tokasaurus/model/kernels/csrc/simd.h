// Vectors of W floats and the few operations the kernels need, on GCC/Clang vector extensions.
//
// W is the register width of the flavour: 8 for AVX2, 16 otherwise (AVX-512, and the generic
// flavour, where the compiler splits a vector into whatever the machine has: NEON, SSE or scalar).
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace toka {

#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int W = 8;
#else
constexpr int W = 16;
#endif

#if defined(__AVX512BF16__)
constexpr bool HAS_BF16_DOT = true;
#else
constexpr bool HAS_BF16_DOT = false;
#endif

typedef float F __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef uint32_t U __attribute__((vector_size(W * 4)));
typedef uint16_t U16 __attribute__((vector_size(W * 2)));

struct bf16 {
  uint16_t bits;
};

#define TOKA_ALWAYS __attribute__((always_inline))
#define TOKA_INLINE inline TOKA_ALWAYS

constexpr float NEG_INF = -std::numeric_limits<float>::infinity();

TOKA_INLINE F splat(float x) { return x - F{}; }
TOKA_INLINE U splat_u(uint32_t x) { return x - U{}; }

template <class V>
TOKA_INLINE V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

TOKA_INLINE F load(const float* p) { return load_as<F>(p); }
TOKA_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof(F)); }

// The even and the odd element of each of W bf16 pairs.
TOKA_INLINE F pair_lo(U pairs) { return (F)(pairs << 16); }
TOKA_INLINE F pair_hi(U pairs) { return (F)(pairs & splat_u(0xffff0000u)); }

TOKA_INLINE U widen(U16 v) {
#if defined(__AVX512F__)
  return (U)_mm512_cvtepu16_epi32((__m256i)v);
#elif defined(__AVX2__)
  return (U)_mm256_cvtepu16_epi32((__m128i)v);  // by name: compilers take the two halves apart
#else
  return __builtin_convertvector(v, U);
#endif
}

TOKA_INLINE F load(const bf16* p) { return (F)(widen(load_as<U16>(p)) << 16); }

TOKA_INLINE float to_float(float x) { return x; }
TOKA_INLINE float to_float(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Round to nearest even; NaN stays NaN.
TOKA_INLINE bf16 to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16)};
}
TOKA_INLINE void assign(float* p, float x) { *p = x; }
TOKA_INLINE void assign(bf16* p, float x) { *p = to_bf16(x); }

TOKA_INLINE void store(bf16* p, F v) {
#if defined(__AVX512BF16__)
  __m256bh packed = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &packed, sizeof(packed));
#else
  U bits = (U)v;
  U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  U is_nan = (U)(v != v);
  rounded = (is_nan & ((bits >> 16) | 0x40u)) | (~is_nan & rounded);
#if defined(__AVX2__) && !defined(__AVX512F__)
  __m256i r = (__m256i)rounded;
  __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
  std::memcpy(p, &packed, sizeof(packed));
#else
  U16 packed = __builtin_convertvector(rounded, U16);
  std::memcpy(p, &packed, sizeof(packed));
#endif
#endif
}

TOKA_INLINE F select(I mask, F yes, F no) {
  return (F)(((U)mask & (U)yes) | (~(U)mask & (U)no));
}

TOKA_INLINE F vmax(F a, F b) {
#if defined(__AVX512F__)
  return (F)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}
TOKA_INLINE F vmin(F a, F b) {
#if defined(__AVX512F__)
  return (F)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (F)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return select(a < b, a, b);
#endif
}

TOKA_INLINE float reduce_add(F v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 s = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
  float s = 0;
  for (int i = 0; i < W; i++) s += v[i];
  return s;
#endif
}

TOKA_INLINE float reduce_max(F v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 s = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
#else
  float s = v[0];
  for (int i = 1; i < W; i++) s = v[i] > s ? v[i] : s;
  return s;
#endif
}

// exp to about 2 ulp; 0 below -87, +inf is not produced (the argument saturates at 88), NaN stays.
TOKA_INLINE F vexp(F x) {
  const F clamped = vmin(vmax(x, splat(-87.0f)), splat(88.0f));
  const F magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F shifted = clamped * 1.44269504088896341f + magic;
  const F n = shifted - magic;
  const F r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const F scaled = (F)((U)p + ((U)shifted << 23));  // the low bits of `shifted` hold n
  return select(x == x, select(x < -87.0f, F{}, scaled), x);
}

TOKA_INLINE F vtanh(F x) {
  // 1 - 2 / (e^2x + 1); odd symmetry keeps small arguments accurate enough for softcaps.
  const F e = vexp(x * 2.0f);
  return 1.0f - 2.0f / (e + 1.0f);
}

TOKA_INLINE F silu(F x) { return x / (1.0f + vexp(-x)); }

}  // namespace toka
