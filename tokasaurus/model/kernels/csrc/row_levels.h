// Rows of bfloat16 as 16-bit integers, for products with weights in few bits: level * scale, with a
// scale per piece of a row. They miss a number by at most one part in 65,000 of the largest one of
// its piece; bfloat16 itself misses by up to one part in 512 of the number.
#pragma once

#include "quantized.h"

namespace toka {

struct PieceScale {
  float factor;  // numbers to levels
  float scale;   // and back; not a number if one of the piece's isn't finite
  float sum;     // of the numbers
};

// Of `size` numbers, a multiple of W.
TOKA_INLINE PieceScale scale_piece(const float* x, int64_t size, int largest_level) {
  constexpr float FINITE = std::numeric_limits<float>::max();
  F sums{}, magnitudes{};
  for (int64_t k = 0; k < size; k += W) {
    const F numbers = load(x + k), magnitude = (F)((U)numbers & splat_u(0x7fffffffu));
    sums += numbers;
    magnitudes = vmax(magnitudes, select(magnitude <= FINITE, magnitude, splat(-NEG_INF)));
  }
  const float sum = reduce_add(sums), magnitude = reduce_max(magnitudes);
  const float largest = float(largest_level);
  if (magnitude > FINITE) return {0.0f, std::numeric_limits<float>::quiet_NaN(), sum};
  return {magnitude > SMALLEST_MAGNITUDE ? largest / magnitude : 0.0f, magnitude / largest, sum};
}

// W levels of a piece.
TOKA_INLINE I levels_of(const float* x, const PieceScale& piece) {
  return to_nearest(piece.factor == 0.0f ? F{} : load(x) * piece.factor);
}

#if defined(TOKA_INT16_PAIRS)

// Int8 weights beside rows of bfloat16: the products of int8_dot.h with larger levels, whose sums
// over a piece of K still fit into 32 bits.
struct Int8ByLevels {
  static constexpr int LARGEST_LEVEL = 32767;
  static constexpr int64_t PIECE = 128;
  static_assert(PIECE * 127 * LARGEST_LEVEL < std::numeric_limits<int32_t>::max());
  static constexpr int64_t MAX_DIRECT_ROWS = std::numeric_limits<int64_t>::max();
  template <int M>
  static constexpr int VECTORS = 2;

  Int8WeightsPanel shape;
  explicit Int8ByLevels(const LinearCall& call) : shape(call.in_features) {}

  // A row: its levels, then a scale per piece.
  int64_t row_floats() const { return shape.steps / 2 + (shape.steps + PIECE - 1) / PIECE; }
  static const Level* levels(const float* row) { return reinterpret_cast<const Level*>(row); }
  const float* scales(const float* row) const { return row + shape.steps / 2; }

  template <class T>
  void prepare(const LinearCall& call, int64_t row, float* block) const {
    thread_local Scratch scratch;
    const int64_t padded = round_up(shape.steps, W);
    float* x = scratch.get<float>(padded);
    prepare_row<T>(call, row, x, padded);
    Level* out = reinterpret_cast<Level*>(block);
    for (int64_t k = 0; k < shape.steps; k += PIECE) {
      const int64_t end = std::min(k + PIECE, padded);
      const PieceScale piece = scale_piece(x + k, end - k, LARGEST_LEVEL);
      for (int64_t i = k; i < end; i += W) {
        Level some[W];
        store_levels(some, levels_of(x + i, piece));
        std::memcpy(out + i, some, std::min<int64_t>(W, shape.steps - i) * sizeof(Level));
      }
      const_cast<float*>(scales(block))[k / PIECE] = piece.scale;
    }
  }

  template <int M, int N, bool STREAMS>
  TOKA_INLINE void multiply(const char* panel, const float* a, int64_t lda, int v, F* tile) const {
    F totals[M][N] = {};
    for (int64_t k = 0; k < shape.steps; k += PIECE) {
      const int8_t* b = Int8WeightsPanel::levels(panel) + k * NR + v * W * DOT_PACK;
      const int64_t count = std::min(PIECE, shape.steps - k);
      I sums[M][N] = {};
      multiply_levels<STREAMS>(levels(a) + k, lda * 2, b, int(count / DOT_PACK), sums);
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
          totals[m][n] += __builtin_convertvector(sums[m][n], F) * scales(a + m * lda)[k / PIECE];
    }
    for (int n = 0; n < N; n++) {
      const F of_columns = load(Int8WeightsPanel::scales(panel) + (v + n) * W);
      for (int m = 0; m < M; m++) tile[2 * m + v + n] = totals[m][n] * of_columns;
    }
  }

  // One row times P panels, `distance` bytes apart.
  template <int P>
  TOKA_INLINE void multiply_panels(const char* panel, int64_t distance, const float* a,
                                   F (&totals)[P][2]) const {
    std::memset(static_cast<void*>(&totals), 0, sizeof(totals));
    for (int64_t k = 0; k < shape.steps; k += PIECE) {
      const int64_t count = std::min(PIECE, shape.steps - k);
      I sums[P][2] = {};
      multiply_level_panels(levels(a) + k, Int8WeightsPanel::levels(panel) + k * NR, distance,
                            count / DOT_PACK, sums);
      for (int p = 0; p < P; p++)
        for (int n = 0; n < 2; n++)
          totals[p][n] += __builtin_convertvector(sums[p][n], F) * scales(a)[k / PIECE];
    }
    for (int p = 0; p < P; p++)
      for (int n = 0; n < 2; n++)
        totals[p][n] *= load(Int8WeightsPanel::scales(panel + p * distance) + n * W);
  }
};

#endif

}  // namespace toka
