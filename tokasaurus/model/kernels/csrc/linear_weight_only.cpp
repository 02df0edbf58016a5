// Linear layers whose weights alone have few bits. Small batches turn them into floats in registers;
// larger ones expand slices of a panel to the operands of micro.h.
#include "quantized.h"

namespace toka {
namespace {

// More rows than this read weights that have been expanded for all of them.
constexpr int MAX_DIRECT_ROWS = MR;

// Independent sums of a column, so that few rows don't wait for one sum after the other.
constexpr int chains(int rows) { return rows == 1 ? 4 : rows <= 4 ? 2 : 1; }

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
  TOKA_INLINE void multiply(const char* panel, const float* a, int64_t lda, const float*, int v,
                            F* tile) const {
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

  static const float* group_sums(const float*, int64_t, int, Scratch&) { return nullptr; }
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

  // The minimum of a group takes part once per row, with the group's sum of the row.
  template <int M, int N, bool STREAMS>
  TOKA_INLINE void multiply(const char* panel, const float* a, int64_t lda, const float* group_sums,
                            int v, F* tile) const {
    F total[M][N] = {};
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
          for (int n = 0; n < N; n++) bk[n] = numbers(lanes[n], j);
          sums.add(j, a + s * CODES, lda, bk);
        }
      }
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
          total[m][n] += sums.total(m, n) * pair_lo(grid[n]) +
                         pair_hi(grid[n]) * splat(group_sums[m * shape.groups + g]);
      a += steps * CODES;
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) tile[2 * m + v + n] = total[m][n];
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

  // [rows][groups]: sums of each row's groups.
  const float* group_sums(const float* a, int64_t lda, int rows, Scratch& scratch) const {
    float* sums = scratch.get<float>(rows * shape.groups);
    for (int m = 0; m < rows; m++)
      for (int64_t g = 0; g < shape.groups; g++) {
        float parts[CODES] = {};
        const float* group = a + m * lda + g * shape.group_steps * CODES;
        for (int64_t k = 0; k < shape.steps_of(g) * CODES; k++) parts[k % CODES] += group[k];
        float& sum = sums[m * shape.groups + g] = 0;
        for (const float part : parts) sum += part;
      }
    return sums;
  }
};

template <class Weights>
void few_rows(const Weights& weights, const char* panel, const float* a, int64_t lda,
              const float* group_sums, int rows, F* tile) {
  with_rows(rows, [&](auto constant) {
    constexpr int M = decltype(constant)::value;
    constexpr int N = M <= 2 && NV == 2 ? 2 : 1;
    for (int v = 0; v < 2; v += N)
      weights.template multiply<M, N, M <= MAX_STREAMING_ROWS>(panel, a, lda, group_sums, v, tile);
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
    for (int64_t m = 0; m < rows; m += tile_rows)
      add_to_tile(int(std::min(tile_rows, rows - m)), tile + 2 * m, [&](auto& acc, int v) TOKA_ALWAYS {
        multiply(a + m * lda + k, lda, slice + v * W * PACK, NR, int(count / PACK), acc);
      });
  }
  weights.finish(panel, rows, tile);
}

template <class A, class T>
A* prepare_rows(const LinearCall& call, int64_t padded, A* out) {
  parallel_pieces(call.num_rows, 8, call.threads, [&](int64_t first, int64_t last) {
    for (int64_t m = first; m < last; m++) prepare_row<T>(call, m, out + m * padded, padded);
  });
  return out;
}

// Runs product(panel, row0, rows, tile, scratch floats) for every panel and ends its tiles.
template <class T, class Out, class Product>
void each_panel(const LinearCall& call, int64_t panel_bytes, int64_t row_bytes, Product&& product) {
  const char* packed = static_cast<const char*>(call.packed);
  const Epilogue<T, Out> epilogue{call};
  const int halves = call.gated ? 2 : 1;
  row_panel_tasks(call, row_bytes, [&](int64_t row0, int64_t rows, int64_t first, int64_t last) {
    thread_local Scratch scratch;
    float* expanded = scratch.get<float>(K_SLICE * NR + halves * rows * 2 * W);
    F* tiles[2] = {reinterpret_cast<F*>(expanded + K_SLICE * NR), nullptr};
    if (call.gated) tiles[1] = tiles[0] + 2 * rows;
    for (int64_t p = first; p < last; p++) {
      for (int h = 0; h < halves; h++)
        product(packed + (p * halves + h) * panel_bytes, row0, rows, tiles[h], expanded);
      epilogue(tiles[0], tiles[1], int(rows), row0, p * NR);
    }
  });
}

template <class Weights, class T, class Out>
void run(const LinearCall& call) {
  const Weights weights(call);
  const int64_t M = call.num_rows, padded = round_up(call.in_features, CODES);
  thread_local Scratch scratch, sums_scratch;
  if (M > MAX_DIRECT_ROWS) {
    typedef Expanded<T> E;
    typedef typename Operand<E>::A Wide;
    const Wide* a = prepare_rows<Wide, T>(call, padded, scratch.get<Wide>(M * padded));
    each_panel<T, Out>(call, weights.shape.bytes, padded * sizeof(Wide),
                       [&](const char* panel, int64_t row0, int64_t rows, F* tile, float* expanded) {
                         many_rows(weights, panel, a + row0 * padded, padded, padded, rows, tile,
                                   reinterpret_cast<E*>(expanded));
                       });
    return;
  }
  const float* a = prepare_rows<float, T>(call, padded, scratch.get<float>(M * padded));
  const float* group_sums = weights.group_sums(a, padded, int(M), sums_scratch);
  each_panel<T, Out>(call, weights.shape.bytes, padded * sizeof(float),
                     [&](const char* panel, int64_t, int64_t rows, F* tile, float*) {
                       few_rows(weights, panel, a, padded, group_sums, int(rows), tile);
                     });
}

template <class Weights>
void run_typed(const LinearCall& call) {
  if (call.type == Type::Float)
    run<Weights, float, float>(call);
  else if (call.out_type == Type::Float)
    run<Weights, bf16, float>(call);
  else
    run<Weights, bf16, bf16>(call);
}

}  // namespace

void linear_weight_only(const LinearCall& call) {
  if (call.format.kind == Format::INT8_WEIGHTS)
    run_typed<Int8Weights>(call);
  else
    run_typed<Int4Weights>(call);
}

}  // namespace toka
