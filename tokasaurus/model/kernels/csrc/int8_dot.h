// Integer products in registers: C[M][N] += A[M][K] * B[K][N] of signed 8-bit levels, of A also
// 16-bit ones where it holds as many, summed in int32 without rounding or saturation, so that every
// flavour gives the same integers.
//
// B is a panel of NR columns in steps of DOT_PACK consecutive k: [K / DOT_PACK][NR][DOT_PACK].
// How a row of A is held depends on the instructions:
//   u8 x s8 dot products (VNNI, and plain C++): level + 128 as uint8; whoever uses the sums has to
//     take 128 times the sum of the column's levels off;
//   int16 pairs otherwise: AVX2's u8 x s8 product saturates at 8 bits, and 16-bit pairs make as
//     many products per cycle as its two-instruction chain.
#pragma once

#include "micro.h"

namespace toka {

typedef int8_t I8 __attribute__((vector_size(W)));
typedef int16_t I16 __attribute__((vector_size(W * 4)));
typedef int8_t I8Pairs __attribute__((vector_size(W * 2)));

#if (defined(__AVX512BW__) && !defined(__AVX512VNNI__)) || \
    (defined(__AVX2__) && !defined(__AVX512F__) && !defined(__AVXVNNI__))
#define TOKA_INT16_PAIRS 1
typedef int16_t Level;
constexpr int DOT_PACK = 2;
constexpr int LEVEL_OFFSET = 0;
#else
typedef uint8_t Level;
constexpr int DOT_PACK = 4;
constexpr int LEVEL_OFFSET = 128;
#endif

TOKA_INLINE I splat_i(int32_t x) { return x - I{}; }

// DOT_PACK levels of one row, as they lie in memory.
TOKA_INLINE I splat_levels(const Level* a) {
  int32_t bits;
  static_assert(sizeof(Level) * DOT_PACK == sizeof(bits), "a step of A is one lane");
  std::memcpy(&bits, a, sizeof(bits));
  return splat_i(bits);
}

// B's operand: a lane holds the levels of one column for one step.
TOKA_INLINE I load_step(const int8_t* b) {
#if defined(TOKA_INT16_PAIRS) && defined(__AVX512F__)
  return (I)__builtin_convertvector(load_as<I8Pairs>(b), I16);
#elif defined(TOKA_INT16_PAIRS)
  // By name: compilers take the two halves apart.
  return (I)_mm256_cvtepi8_epi16(load_as<__m128i>(b));
#else
  return load_as<I>(b);
#endif
}

TOKA_INLINE I dot(I sum, I a, I b) {
#if defined(TOKA_INT16_PAIRS) && defined(__AVX512F__)
  return sum + (I)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(TOKA_INT16_PAIRS)
  return sum + (I)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__AVX512VNNI__)
  return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
  return (I)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
#else
  for (int shift = 0; shift < 32; shift += 8)
    sum += (I)(((U)a >> shift) & 255u) * ((I)((U)b << (24 - shift)) >> 24);
  return sum;
#endif
}

// Straight from a packed panel.
template <bool STREAMS, int M, int N>
TOKA_INLINE void multiply_levels(const Level* a, ptrdiff_t lda, const int8_t* b, int steps,
                                 I (&acc)[M][N]) {
  constexpr int STEP = NR * DOT_PACK;  // bytes
  RowPointers<M> rows(a, lda);
#pragma GCC unroll 4
  for (int k = 0; k < steps; k++) {
    if (STREAMS) {
      for (int line = 0; line < STEP; line += 64) __builtin_prefetch(b + STREAM_DISTANCE + line);
    }
    I bk[N];
    for (int n = 0; n < N; n++) bk[n] = load_step(b + n * W * DOT_PACK);
    for (int m = 0; m < M; m++) {
      const I am = splat_levels(rows.template row<Level>(m));
      for (int n = 0; n < N; n++) acc[m][n] = dot(acc[m][n], am, bk[n]);
    }
    rows.advance(DOT_PACK * sizeof(Level));
    b += STEP;
  }
}

// One row of A times P packed panels, `panel_bytes` apart: each is a stream of its own from memory.
template <int P>
TOKA_INLINE void multiply_level_panels(const Level* a, const int8_t* b, ptrdiff_t panel_bytes,
                                       int64_t steps, I (&acc)[P][2]) {
  constexpr int STEP = NR * DOT_PACK, AT_ONCE = STEP < 64 ? 64 / STEP : 1;
  const auto add = [&](int64_t k) TOKA_ALWAYS {
    const I ak = splat_levels(a + k * DOT_PACK);
    for (int p = 0; p < P; p++)
      for (int n = 0; n < 2; n++)
        acc[p][n] = dot(acc[p][n], ak, load_step(b + p * panel_bytes + n * W * DOT_PACK));
    b += STEP;
  };
  int64_t k = 0;
  for (; k + AT_ONCE <= steps; k += AT_ONCE) {
    for (int p = 0; p < P; p++) fetch_near<STEP * AT_ONCE>(b + p * panel_bytes);
    for (int i = 0; i < AT_ONCE; i++) add(k + i);
  }
  for (; k < steps; k++) add(k);
}

// W levels as floats.
TOKA_INLINE F to_floats(const int8_t* levels) {
#if defined(__AVX512F__)
  return (F)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_as<__m128i>(levels)));
#elif defined(__AVX2__)
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(levels));
  return (F)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
  return __builtin_convertvector(__builtin_convertvector(load_as<I8>(levels), I), F);
#endif
}

// Nearest integers, ties to even, of values within int32.
TOKA_INLINE I to_nearest(F x) {
#if defined(__AVX512F__)
  return (I)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
  return (I)_mm256_cvtps_epi32((__m256)x);
#elif defined(__FP_FAST_FMAF)
  // The sum below would become one operation with a product before it, which would not be rounded.
  I nearest;
  for (int i = 0; i < W; i++) nearest[i] = int32_t(__builtin_rintf(x[i]));
  return nearest;
#else
  // Adding 1.5 * 2^23 rounds; the integer is then in the low bits.
  return (I)(x + splat(12582912.0f)) - splat_i(0x4b400000);
#endif
}

// W levels in the form that `dot` takes. They are from -127 to 127, or fit into 16 bits where A's
// levels have as many.
TOKA_INLINE void store_levels(Level* out, I levels) {
  levels += splat_i(LEVEL_OFFSET);
#if defined(__AVX512F__) && defined(TOKA_INT16_PAIRS)
  const __m256i narrow = _mm512_cvtepi32_epi16((__m512i)levels);
#elif defined(__AVX512F__)
  const __m128i narrow = _mm512_cvtepi32_epi8((__m512i)levels);
#elif defined(TOKA_INT16_PAIRS)
  const __m256i wide = (__m256i)levels;
  const __m128i narrow =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
#else
  Level narrow[W];
  for (int i = 0; i < W; i++) narrow[i] = Level(levels[i]);
#endif
  std::memcpy(out, &narrow, sizeof(narrow));
}

}  // namespace toka
