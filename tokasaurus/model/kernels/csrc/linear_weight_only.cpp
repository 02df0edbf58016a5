// Linear layers whose weights alone have few bits. Small batches turn them into floats in
// registers; larger ones expand slices of a panel to the operands of micro.h.
#include "int4_dot.h"
#include "quantized.h"
#include "single_row.h"

namespace toka {
namespace {

// More rows than this read weights that have been expanded for all of them.
constexpr int MAX_DIRECT_ROWS = MR;

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
  const U pairs = __builtin_convertvector(load_as<U16>(halves[0]), U) |
                  __builtin_convertvector(load_as<U16>(halves[1]), U) << 16;
  std::memcpy(static_cast<void*>(out), &pairs, sizeof(U));
}

struct Int8Weights {
  Int8WeightsPanel shape;
  explicit Int8Weights(const LinearCall& call) : shape(call.in_features) {}

  template <int M, int N, bool STREAMS>
  TOKA_INLINE void multiply(const char* panel, const float* a, int64_t lda, int v, F* tile) const {
    const int8_t* b = Int8WeightsPanel::levels(panel) + v * W;
    Sums<M, N> sums;
    for (int64_t k = 0; k < shape.steps; k += 4) {
      if (STREAMS) prefetch_bytes<4 * NR>(b);
      for (int j = 0; j < 4; j++) {
        F bk[N];
        for (int n = 0; n < N; n++) bk[n] = to_floats(b + j * NR + n * W);
        sums.add(j, a + k, lda, bk);
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
    for (int64_t k = 0; k < shape.steps; k++, b += NR) {
      const F ak = splat(a[k]);
      for (int p = 0; p < P; p++)
        for (int n = 0; n < 2; n++) sums[p][n] += ak * to_floats(b + p * distance + n * W);
    }
    for (int p = 0; p < P; p++) finish(panel + p * distance, 1, sums[p]);
  }

  // Levels themselves, which are exact in bf16 too; `finish` scales the sums.
  template <class E>
  void expand(const char* panel, int64_t k, int64_t count, E* out) const {
    const int8_t* b = Int8WeightsPanel::levels(panel) + k * NR;
    for (int64_t i = 0; i < count; i += 2) {
      prefetch_bytes<2 * NR>(b + i * NR);
      for (int n = 0; n < 2; n++)
        store_operands(expanded_at(out, i, n), to_floats(b + i * NR + n * W),
                       to_floats(b + (i + 1) * NR + n * W));
    }
  }

  void finish(const char* panel, int64_t rows, F* tile) const {
    for (int n = 0; n < 2; n++) {
      const F scales = load(Int8WeightsPanel::scales(panel) + n * W);
      for (int64_t m = 0; m < rows; m++) tile[2 * m + n] *= scales;
    }
  }

  // Of a row as the products take it.
  int64_t row_floats() const { return shape.steps; }
  template <class T>
  void prepare(const LinearCall& call, int64_t row, float* a) const {
    prepare_row<T>(call, row, a, shape.steps);
  }
};

struct Int4Weights {
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

// 2 <= rows <= MR.
template <class Weights>
void few_rows(const Weights& weights, const char* panel, const float* a, int64_t lda, int rows,
              F* tile) {
  with_rows<2>(rows, [&](auto constant) {
    constexpr int M = decltype(constant)::value;
    constexpr int N = M <= 2 && NV == 2 ? 2 : 1;
    for (int v = 0; v < 2; v += N)
      weights.template multiply<M, N, M <= MAX_STREAMING_ROWS>(panel, a, lda, v, tile);
  });
}

template <class Weights, class E>
void many_rows(const Weights& weights, const char* panel, const typename Operand<E>::A* a,
               int64_t lda, int64_t padded, int64_t rows, F* tile, E* expanded) {
  constexpr int PACK = Operand<E>::PACK;
  const int64_t tiles = (rows + MR - 1) / MR, tile_rows = (rows + tiles - 1) / tiles;
  std::memset(static_cast<void*>(tile), 0, rows * 2 * sizeof(F));
  for (int64_t k = 0; k < padded; k += K_SLICE) {
    const int64_t count = std::min(K_SLICE, padded - k);
    weights.expand(panel, k, count, expanded);
    const E* slice = expanded;
    for (int64_t m = 0; m < rows; m += tile_rows) {
      const int n = int(std::min(tile_rows, rows - m));
      add_to_tile(n, tile + 2 * m, [&](auto& acc, int v) TOKA_ALWAYS {
        multiply(a + m * lda + k, lda, slice + v * W * PACK, NR, int(count / PACK), acc);
      });
    }
  }
  weights.finish(panel, rows, tile);
}

// Runs product(panel, row0, rows, tile, scratch floats) for every panel and ends its tiles.
template <class T, class Out, class Product>
void each_panel(Team& team, const LinearCall& call, int64_t panel_bytes, int64_t row_bytes,
                Product&& product) {
  const char* packed = static_cast<const char*>(call.packed);
  const Epilogue<T, Out> epilogue{call};
  const int halves = call.gated ? 2 : 1;
  const auto task = [&](int64_t row0, int64_t rows, int64_t first, int64_t last) {
    thread_local Scratch scratch;
    float* expanded = scratch.get<float>(K_SLICE * NR + halves * rows * 2 * W);
    F* tiles[2] = {reinterpret_cast<F*>(expanded + K_SLICE * NR), nullptr};
    if (call.gated) tiles[1] = tiles[0] + 2 * rows;
    for (int64_t p = first; p < last; p++) {
      for (int h = 0; h < halves; h++)
        product(packed + (p * halves + h) * panel_bytes, row0, rows, tiles[h], expanded);
      epilogue(tiles[0], tiles[1], int(rows), row0, p * NR);
    }
  };
  row_panel_tasks(team, call, row_bytes, task);
}

template <class Weights, class T, class Out>
void run_many(Team& team, const LinearCall& call, void* room) {
  typedef Expanded<T> E;
  typedef typename Operand<E>::A Wide;
  const Weights weights(call);
  const int64_t M = call.num_rows, padded = round_up(call.in_features, CODES);
  const Wide* a = static_cast<const Wide*>(
      ready_rows(team, M, M * padded * sizeof(Wide), room, [&](int64_t row, void* block) {
        prepare_row<T>(call, row, static_cast<Wide*>(block) + row * padded, padded);
      }));
  each_panel<T, Out>(team, call, weights.shape.bytes, padded * sizeof(Wide),
                     [&](const char* panel, int64_t row0, int64_t rows, F* tile, float* expanded) {
                       many_rows(weights, panel, a + row0 * padded, padded, padded, rows, tile,
                                 reinterpret_cast<E*>(expanded));
                     });
}

template <class Weights, class T, class Out>
void run_few(Team& team, const LinearCall& call, void* room) {
  const Weights weights(call);
  const int64_t M = call.num_rows, lda = weights.row_floats();
  const float* a = static_cast<const float*>(
      ready_rows(team, M, M * lda * sizeof(float), room, [&](int64_t row, void* block) {
        weights.template prepare<T>(call, row, static_cast<float*>(block) + row * lda);
      }));
  if (M == 1)
    single_row<T, Out>(team, call, weights.shape.bytes,
                       [&](const char* panel, int64_t distance, auto& products) TOKA_ALWAYS {
                         weights.multiply_panels(panel, distance, a, products);
                       });
  else
    each_panel<T, Out>(team, call, weights.shape.bytes, lda * sizeof(float),
                       [&](const char* panel, int64_t, int64_t rows, F* tile, float*) {
                         few_rows(weights, panel, a, lda, int(rows), tile);
                       });
}

// What multiplies few rows of type T.
template <class Weights, class T>
struct Few {
  typedef Weights Type;
};
#if defined(TOKA_INT4_DOT)
template <>
struct Few<Int4Weights, bf16> {
  typedef Int4Codes Type;
};
#endif

template <class Weights, class T, class Out>
void run(Team& team, const LinearCall& call, void* room) {
  if (call.num_rows > MAX_DIRECT_ROWS)
    run_many<Weights, T, Out>(team, call, room);
  else
    run_few<typename Few<Weights, T>::Type, T, Out>(team, call, room);
}

template <class Weights>
void run_typed(Team& team, const LinearCall& call, void* room) {
  if (call.type == Type::Float)
    run<Weights, float, float>(team, call, room);
  else if (call.out_type == Type::Float)
    run<Weights, bf16, float>(team, call, room);
  else
    run<Weights, bf16, bf16>(team, call, room);
}

}  // namespace

void linear_weight_only(Team& team, const LinearCall& call, void* room) {
  if (call.format.kind == Format::INT8_WEIGHTS)
    run_typed<Int8Weights>(team, call, room);
  else
    run_typed<Int4Weights>(team, call, room);
}

}  // namespace toka
