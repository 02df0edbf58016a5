// Weights in few bits as floats: turned into them in registers for few rows, and for many rows as
// expanded slices of a panel.
#pragma once

#include "quantized.h"

namespace toka {

// Independent sums of a column, so that few rows don't wait for one sum after the other.
constexpr int chains(int rows) { return rows <= 4 ? 2 : 1; }

template <int M, int N>
struct Sums {
  static constexpr int CHAINS = chains(M);
  F parts[CHAINS][M][N] = {};

  TOKA_INLINE void add(int k, const float* a, int64_t lda, const F (&b)[N]) {
    for (int m = 0; m < M; m++) {
      const F am = splat(a[m * lda + k]);
      for (int n = 0; n < N; n++) parts[k % CHAINS][m][n] += am * b[n];
    }
  }
  TOKA_INLINE F total(int m, int n) const {
    F sum = parts[0][m][n];
    for (int c = 1; c < CHAINS; c++) sum += parts[c][m][n];
    return sum;
  }
};

template <int BYTES>
TOKA_INLINE void prefetch_bytes(const void* at) {
  const char* ahead = static_cast<const char*>(at) + STREAM_DISTANCE;
  for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(ahead + line);
}

// What weights are expanded to beside activations of type T; floats must not lose bits.
template <class T>
using Expanded = std::conditional_t<HAS_BF16_DOT && std::is_same_v<T, bf16>, bf16, float>;

// Where the vector n of an even k begins in an expanded slice of NR columns.
template <class E>
TOKA_INLINE E* expanded_at(E* slice, int64_t k, int n) {
  return slice + k * NR + n * W * Operand<E>::PACK;
}

// Two rows of k, the first one even, as micro.h wants them.
TOKA_INLINE void store_operands(float* out, F even, F odd) {
  store(out, even);
  store(out + NR, odd);
}
[[maybe_unused]] TOKA_INLINE void store_operands(bf16* out, F even, F odd) {
  bf16 halves[2][W];
  store(halves[0], even);
  store(halves[1], odd);
  const U pairs = widen(load_as<U16>(halves[0])) | widen(load_as<U16>(halves[1])) << 16;
  std::memcpy(static_cast<void*>(out), &pairs, sizeof(U));
}

// The levels of the vector n of columns at an even k, where `b` begins, and at the next one.
TOKA_INLINE void levels_to_floats(const int8_t* b, int n, F& even, F& odd) {
  if constexpr (LEVEL_PACK == 1) {
    even = to_floats(b + n * W);
    odd = to_floats(b + NR + n * W);
  } else {
    const I pairs = load_step(b + n * W * LEVEL_PACK);
    even = __builtin_convertvector(pairs << 16 >> 16, F);
    odd = __builtin_convertvector(pairs >> 16, F);
  }
}

// The same, LEVEL_FACTOR times as large.
#if defined(TOKA_INT16_PAIRS) && !defined(__AVX512F__)
constexpr float LEVEL_FACTOR = 1 << 24;
TOKA_INLINE void enlarged_levels(const int8_t* b, int n, F& even, F& odd) {
  constexpr int8_t NONE = -1;
  const __m256i pairs = _mm256_broadcastsi128_si256(load_as<__m128i>(b + n * W * LEVEL_PACK));
  const auto to_tops = [&](int8_t first) TOKA_ALWAYS {  // of lanes: bytes of every other k
    const auto byte = [&](int column) TOKA_ALWAYS { return int8_t(first + 2 * column); };
    const __m256i order = _mm256_setr_epi8(
        NONE, NONE, NONE, byte(0), NONE, NONE, NONE, byte(1), NONE, NONE, NONE, byte(2), NONE, NONE,
        NONE, byte(3), NONE, NONE, NONE, byte(4), NONE, NONE, NONE, byte(5), NONE, NONE, NONE,
        byte(6), NONE, NONE, NONE, byte(7));
    return __builtin_convertvector((I)_mm256_shuffle_epi8(pairs, order), F);
  };
  even = to_tops(0);
  odd = to_tops(1);
}
#else
constexpr float LEVEL_FACTOR = 1;
TOKA_INLINE void enlarged_levels(const int8_t* b, int n, F& even, F& odd) {
  levels_to_floats(b, n, even, odd);
}
#endif

struct Int8Weights {
  // More rows than this read weights that have been expanded for all of them.
  static constexpr int64_t MAX_DIRECT_ROWS = MR;
  template <int M>
  static constexpr int VECTORS = M <= 2 ? NV : 1;
  Int8WeightsPanel shape;
  explicit Int8Weights(const LinearCall& call) : shape(call.in_features) {}

  template <int M, int N, bool STREAMS>
  TOKA_INLINE void multiply(const char* panel, const float* a, int64_t lda, int v, F* tile) const {
    const int8_t* b = Int8WeightsPanel::levels(panel);
    Sums<M, N> sums;
    for (int64_t k = 0; k < shape.steps; k += 4) {
      if (STREAMS) prefetch_bytes<4 * NR>(b + v * W);
      for (int j = 0; j < 4; j += 2) {
        F even[N], odd[N];
        for (int n = 0; n < N; n++) enlarged_levels(b + j * NR, v + n, even[n], odd[n]);
        sums.add(j, a + k, lda, even);
        sums.add(j + 1, a + k, lda, odd);
      }
      b += 4 * NR;
    }
    for (int n = 0; n < N; n++) {
      const F scales = load(Int8WeightsPanel::scales(panel) + (v + n) * W);
      for (int m = 0; m < M; m++) tile[2 * m + v + n] = sums.total(m, n) * scales;
    }
  }

  // One row times P panels, `distance` bytes apart.
  template <int P>
  TOKA_INLINE void multiply_panels(const char* panel, int64_t distance, const float* a,
                                   F (&sums)[P][2]) const {
    std::memset(static_cast<void*>(&sums), 0, sizeof(sums));
    const int8_t* b = Int8WeightsPanel::levels(panel);
    for (int64_t k = 0; k < shape.steps; k += 2, b += 2 * NR) {
      const F a_even = splat(a[k]), a_odd = splat(a[k + 1]);
      for (int p = 0; p < P; p++)
        for (int n = 0; n < 2; n++) {
          F even, odd;
          enlarged_levels(b + p * distance, n, even, odd);
          sums[p][n] += a_even * even;
          sums[p][n] += a_odd * odd;
        }
    }
    for (int p = 0; p < P; p++) finish(panel + p * distance, 1, sums[p]);
  }

  // Levels themselves, which are exact in bf16 too; `finish` scales the sums.
  template <class E>
  void expand(const char* panel, int64_t k, int64_t count, E* out) const {
    const int8_t* b = Int8WeightsPanel::levels(panel) + k * NR;
    for (int64_t i = 0; i < count; i += 2) {
      prefetch_bytes<2 * NR>(b + i * NR);
      for (int n = 0; n < 2; n++) {
        F even, odd;
        levels_to_floats(b + i * NR, n, even, odd);
        store_operands(expanded_at(out, i, n), even, odd);
      }
    }
  }

  void finish(const char* panel, int64_t rows, F* tile) const {
    for (int n = 0; n < 2; n++) {
      const F scales = load(Int8WeightsPanel::scales(panel) + n * W);
      for (int64_t m = 0; m < rows; m++) tile[2 * m + n] *= scales;
    }
  }

  // A row, divided by what its levels will be multiplied by.
  int64_t row_floats() const { return shape.steps; }
  template <class T>
  void prepare(const LinearCall& call, int64_t row, float* a) const {
    prepare_row<T>(call, row, a, shape.steps);
    if (LEVEL_FACTOR != 1)
      for (int64_t k = 0; k < shape.steps; k++) a[k] *= 1 / LEVEL_FACTOR;
  }
};

struct Int4Weights {
  static constexpr int64_t MAX_DIRECT_ROWS = MR;
  template <int M>
  static constexpr int VECTORS = M <= 2 ? NV : 1;
  Int4WeightsPanel shape;
  explicit Int4Weights(const LinearCall& call)
      : shape(call.in_features, call.format.group_size) {}

  const uint32_t* lanes_of(const char* panel, int64_t group) const {
    return reinterpret_cast<const uint32_t*>(panel) + shape.group_offset(group);
  }
  static TOKA_INLINE F numbers(U lanes, int j) {
    return __builtin_convertvector((I)((lanes >> (4 * j)) & 15u), F);
  }
  // The numbers times what unshifted(j) says: an instruction less.
  static TOKA_INLINE F shifted_numbers(U lanes, int j) {
    const U bits = j == CODES - 1 ? lanes >> (4 * j) : lanes & splat_u(15u << (4 * j));
    return __builtin_convertvector((I)bits, F);
  }
  static float unshifted(int j) { return j == CODES - 1 ? 1.0f : 1.0f / float(1 << (4 * j)); }

  // The minimum of a group takes part once per row, with the group's sum of the row.
  template <int M, int N, bool STREAMS>
  TOKA_INLINE void multiply(const char* panel, const float* a, int64_t lda, int v, F* tile) const {
    F total[M][N] = {};
    const float* group_sums = sums_of(a);
    for (int64_t g = 0; g < shape.groups; g++) {
      const uint32_t* b = lanes_of(panel, g) + v * W;
      U grid[N];
      for (int n = 0; n < N; n++) grid[n] = load_as<U>(b + n * W);
      Sums<M, N> sums;
      const int64_t steps = shape.steps_of(g);
      for (int64_t s = 0; s < steps; s++) {
        b += NR;
        if (STREAMS) prefetch_bytes<4 * NR>(b);
        U lanes[N];
        for (int n = 0; n < N; n++) lanes[n] = load_as<U>(b + n * W);
#pragma GCC unroll 8
        for (int j = 0; j < CODES; j++) {
          F bk[N];
          for (int n = 0; n < N; n++) bk[n] = shifted_numbers(lanes[n], j);
          sums.add(j, a + s * CODES, lda, bk);
        }
      }
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
          total[m][n] += sums.total(m, n) * pair_lo(grid[n]) +
                         pair_hi(grid[n]) * splat(group_sums[m * lda + g]);
      a += steps * CODES;
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) tile[2 * m + v + n] = total[m][n];
  }

  template <int P>
  TOKA_INLINE void multiply_panels(const char* panel, int64_t distance, const float* a,
                                   F (&sums)[P][2]) const {
    std::memset(static_cast<void*>(&sums), 0, sizeof(sums));
    const float* group_sums = sums_of(a);
    for (int64_t g = 0; g < shape.groups; g++) {
      const char* b = reinterpret_cast<const char*>(lanes_of(panel, g));
      const char* grid = b;
      F parts[P][2] = {};
      const int64_t steps = shape.steps_of(g);
      for (int64_t s = 0; s < steps; s++, a += CODES) {
        b += NR * sizeof(uint32_t);
        for (int p = 0; p < P; p++)
          for (int n = 0; n < 2; n++) {
            const U lanes = load_as<U>(b + p * distance + n * sizeof(U));
#pragma GCC unroll 8
            for (int j = 0; j < CODES; j++)
              parts[p][n] += splat(a[j]) * shifted_numbers(lanes, j);
          }
      }
      for (int p = 0; p < P; p++)
        for (int n = 0; n < 2; n++) {
          const U pairs = load_as<U>(grid + p * distance + n * sizeof(U));
          sums[p][n] += parts[p][n] * pair_lo(pairs) + pair_hi(pairs) * splat(group_sums[g]);
        }
    }
  }

  // k is a multiple of the group's size.
  template <class E>
  void expand(const char* panel, int64_t k, int64_t count, E* out) const {
    const int64_t group_size = shape.group_steps * CODES;
    for (int64_t i = 0; i < count; i += CODES) {
      const int64_t group = (k + i) / group_size, step = (k + i) % group_size / CODES;
      const uint32_t* b = lanes_of(panel, group);
      prefetch_bytes<4 * NR>(b + (1 + step) * NR);
      for (int n = 0; n < 2; n++) {
        const U grid = load_as<U>(b + n * W), lanes = load_as<U>(b + (1 + step) * NR + n * W);
        const F scale = pair_lo(grid), minimum = pair_hi(grid);
        for (int j = 0; j < CODES; j += 2)
          store_operands(expanded_at(out, i + j, n), numbers(lanes, j) * scale + minimum,
                         numbers(lanes, j + 1) * scale + minimum);
      }
    }
  }

  void finish(const char*, int64_t, F*) const {}

  // A row, then the sums of its groups.
  int64_t row_floats() const { return shape.steps * CODES + shape.groups; }
  const float* sums_of(const float* a) const { return a + shape.steps * CODES; }

  // Sums up each group of a row, then multiplies the row by what its codes will be shifted by.
  template <class T>
  void prepare(const LinearCall& call, int64_t row, float* a) const {
    prepare_row<T>(call, row, a, shape.steps * CODES);
    float* sums = const_cast<float*>(sums_of(a));
    for (int64_t g = 0; g < shape.groups; g++) {
      float parts[CODES] = {};
      float* group = a + g * shape.group_steps * CODES;
      for (int64_t k = 0; k < shape.steps_of(g) * CODES; k++) {
        parts[k % CODES] += group[k];
        group[k] *= unshifted(int(k % CODES));
      }
      sums[g] = 0;
      for (const float part : parts) sums[g] += part;
    }
  }
};

}  // namespace toka
