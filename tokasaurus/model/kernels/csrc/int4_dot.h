// Integer products of 4-bit codes and rows of 16-bit levels, for AVX2: half the instructions that
// the same products take in floats.
//
// A level is 256 * high + low, two signed bytes, since codes are multiplied by bytes: a product of
// two of them, `vpmaddubsw`, adds up to 8 times in 16 bits (8 * 2 * 15 * 128 < 2^15).
#pragma once

#include "row_levels.h"

#if defined(__AVX2__) && !defined(__AVX512F__)
#define TOKA_INT4_DOT 1

namespace toka {

// Steps whose products of one digit are added in 16 bits.
constexpr int DIGIT_STEPS = 4;

// Bytes of a row's step: the high digits of its even k, of its odd k, then the low digits.
constexpr int STEP_DIGITS = 2 * CODES;

// CODES levels.
TOKA_INLINE void store_digits(int8_t* out, I levels) {
  const __m256i digits = (__m256i)((levels + splat_i(128)) ^ splat_i(128));  // low, high, ...
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(1, 9, 5, 13, 0, 8, 4, 12, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m256i halves = _mm256_shuffle_epi8(digits, order);
  const __m128i pairs =
      _mm_unpacklo_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  std::memcpy(out, &pairs, STEP_DIGITS);
}

TOKA_INLINE __m256i splat_digits(const int8_t* digits) {
  int32_t bits;
  std::memcpy(&bits, digits, sizeof(bits));
  return _mm256_set1_epi32(bits);
}

// Digits of one step of a row, each a vector of them.
struct SplatStep {
  __m256i high_even, high_odd, low_even, low_odd;

  explicit TOKA_INLINE SplatStep(const int8_t* step)
      : high_even(splat_digits(step)),
        high_odd(splat_digits(step + 4)),
        low_even(splat_digits(step + 8)),
        low_odd(splat_digits(step + 12)) {}
};

// sums[m][n] += products of `count` <= DIGIT_STEPS steps of codes, N vectors of W columns each, and
// of M rows: step_of(m, s) gives their digits.
template <int M, int N, class StepOf>
TOKA_INLINE void add_code_products(const char* codes, int count, StepOf&& step_of,
                                   I (&sums)[M][N]) {
  const __m256i mask = _mm256_set1_epi8(15);
  __m256i high[M][N] = {}, low[M][N] = {};
#pragma GCC unroll 4
  for (int s = 0; s < count; s++) {
    __m256i even[N], odd[N];
    for (int n = 0; n < N; n++) {
      const __m256i lanes = load_as<__m256i>(codes + (s * 2 + n) * sizeof(U));
      even[n] = _mm256_and_si256(lanes, mask);
      odd[n] = _mm256_and_si256(_mm256_srli_epi16(lanes, 4), mask);
    }
    for (int m = 0; m < M; m++) {
      const SplatStep& x = step_of(m, s);
      for (int n = 0; n < N; n++) {
        high[m][n] = _mm256_add_epi16(high[m][n], _mm256_maddubs_epi16(even[n], x.high_even));
        high[m][n] = _mm256_add_epi16(high[m][n], _mm256_maddubs_epi16(odd[n], x.high_odd));
        low[m][n] = _mm256_add_epi16(low[m][n], _mm256_maddubs_epi16(even[n], x.low_even));
        low[m][n] = _mm256_add_epi16(low[m][n], _mm256_maddubs_epi16(odd[n], x.low_odd));
        // Keeps the order of the sums: in another one more of them would have to be held.
        asm("" : "+x"(high[m][n]), "+x"(low[m][n]));
      }
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) {
      const __m256i of_high = _mm256_madd_epi16(high[m][n], _mm256_set1_epi16(256));
      const __m256i of_low = _mm256_madd_epi16(low[m][n], _mm256_set1_epi16(1));
      sums[m][n] += (I)of_high + (I)of_low;
    }
}

// 4-bit weights beside rows of bfloat16, with a scale of each group of a row.
struct Int4ByLevels {
  static constexpr int LARGEST_LEVEL = 127 * 256 + 127;
  static constexpr int64_t MAX_DIRECT_ROWS = MR;
  template <int M>
  static constexpr int VECTORS = M <= 2 ? 2 : 1;

  Int4WeightsPanel shape;
  explicit Int4ByLevels(const LinearCall& call) : shape(call.in_features, call.format.group_size) {}

  // A row: its digits, then a scale and a sum per group.
  int64_t row_floats() const {
    return shape.steps * STEP_DIGITS / int64_t(sizeof(float)) + 2 * shape.groups;
  }
  const float* scales(const float* row) const {
    return row + shape.steps * STEP_DIGITS / int64_t(sizeof(float));
  }

  template <class T>
  void prepare(const LinearCall& call, int64_t row, float* block) const {
    thread_local Scratch scratch;
    float* x = scratch.get<float>(shape.steps * CODES);
    prepare_row<T>(call, row, x, shape.steps * CODES);
    int8_t* digits = reinterpret_cast<int8_t*>(block);
    float* of_groups = const_cast<float*>(scales(block));
    for (int64_t g = 0; g < shape.groups; g++) {
      const int64_t steps = shape.steps_of(g);
      const PieceScale piece = scale_piece(x, steps * CODES, LARGEST_LEVEL);
      for (int64_t s = 0; s < steps; s++, x += CODES, digits += STEP_DIGITS)
        store_digits(digits, levels_of(x, piece));
      of_groups[2 * g] = piece.scale;
      of_groups[2 * g + 1] = piece.sum;
    }
  }

  // Calls add(step, count) for pieces of a group that sums in 16 bits can hold.
  template <class Add>
  static TOKA_INLINE void each_piece(int64_t steps, Add&& add) {
    int64_t s = 0;
    for (; s + DIGIT_STEPS <= steps; s += DIGIT_STEPS) add(s, DIGIT_STEPS);
    if (s < steps) add(s, int(steps - s));
  }

  // Adds what a group comes to: `sum` of products, and its minimum times the sum of its numbers.
  static TOKA_INLINE void add_group(F& total, I sum, U grid, const float* of_group) {
    total += pair_hi(grid) * of_group[1];
    total += __builtin_convertvector(sum, F) * (pair_lo(grid) * of_group[0]);
  }

  static constexpr int64_t STEP = 2 * sizeof(U);

  template <int M, int N, bool STREAMS>
  TOKA_INLINE void multiply(const char* panel, const float* a, int64_t lda, int v, F* tile) const {
    F totals[M][N] = {};
    const char* b = panel + v * sizeof(U);
    const int8_t* digits = reinterpret_cast<const int8_t*>(a);
    for (int64_t g = 0; g < shape.groups; g++) {
      const int64_t steps = shape.steps_of(g);
      U grid[N];
      for (int n = 0; n < N; n++) grid[n] = load_as<U>(b + n * sizeof(U));
      b += STEP;
      I sums[M][N] = {};
      each_piece(steps, [&](int64_t first, int count) TOKA_ALWAYS {
        if (STREAMS)
          for (int64_t line = 0; line < DIGIT_STEPS * STEP; line += 64)
            __builtin_prefetch(b + STREAM_DISTANCE + line);
        add_code_products(b, count,
                          [&](int m, int s) TOKA_ALWAYS {
                            return SplatStep(digits + m * lda * sizeof(float) +
                                             (first + s) * STEP_DIGITS);
                          },
                          sums);
        b += count * STEP;
      });
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
          add_group(totals[m][n], sums[m][n], grid[n], scales(a + m * lda) + 2 * g);
      digits += steps * STEP_DIGITS;
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) tile[2 * m + v + n] = totals[m][n];
  }

  // One row times P panels, `distance` bytes apart.
  template <int P>
  TOKA_INLINE void multiply_panels(const char* panel, int64_t distance, const float* a,
                                   F (&totals)[P][2]) const {
    std::memset(static_cast<void*>(&totals), 0, sizeof(totals));
    const char* b = panel;
    const int8_t* digits = reinterpret_cast<const int8_t*>(a);
    for (int64_t g = 0; g < shape.groups; g++) {
      const char* grids = b;
      b += STEP;
      I sums[P][1][2] = {};
      each_piece(shape.steps_of(g), [&](int64_t, int count) TOKA_ALWAYS {
        const auto step = [&](int s) TOKA_ALWAYS {  // the last one again beyond the row's end
          return SplatStep(digits + std::min(s, count - 1) * STEP_DIGITS);
        };
        const SplatStep steps[DIGIT_STEPS] = {step(0), step(1), step(2), step(3)};
        for (int p = 0; p < P; p++)
          add_code_products(
              b + p * distance, count,
              [&](int, int s) TOKA_ALWAYS -> const SplatStep& { return steps[s]; }, sums[p]);
        b += count * STEP;
        digits += count * STEP_DIGITS;
      });
      for (int p = 0; p < P; p++)
        for (int n = 0; n < 2; n++) {
          const U grid = load_as<U>(grids + p * distance + n * sizeof(U));
          add_group(totals[p][n], sums[p][0][n], grid, scales(a) + 2 * g);
        }
    }
  }
};

}  // namespace toka

#endif
