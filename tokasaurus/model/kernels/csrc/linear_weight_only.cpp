// Linear layers whose weights alone have few bits. Small batches turn them into floats in
// registers, or rows of bfloat16 into integers; larger ones expand slices of a panel to the
// operands of micro.h, unless integers are faster.
#include "int4_dot.h"
#include "panel_streams.h"
#include "row_levels.h"
#include "weights_as_floats.h"

namespace toka {
namespace {

// Straight from a panel, a few rows at a time.
template <class Weights>
void direct_rows(const Weights& weights, const char* panel, const float* a, int64_t lda,
                 int64_t rows, F* tile) {
  constexpr int LEAST = Weights::MAX_DIRECT_ROWS > MR ? 1 : 2;
  const int64_t tiles = (rows + MR - 1) / MR, tile_rows = (rows + tiles - 1) / tiles;
  for (int64_t m = 0; m < rows; m += tile_rows)
    with_rows<LEAST>(int(std::min(tile_rows, rows - m)), [&](auto constant) {
      constexpr int M = decltype(constant)::value;
      constexpr int N = Weights::template VECTORS<M>;
      for (int v = 0; v < 2; v += N)
        weights.template multiply<M, N, M <= MAX_FETCHED_ROWS>(panel, a + m * lda, lda, v,
                                                                 tile + 2 * m);
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
void run_direct(Team& team, const LinearCall& call, void* room) {
  const Weights weights(call);
  const int64_t M = call.num_rows, lda = weights.row_floats();
  const float* a = static_cast<const float*>(
      ready_rows(team, M, M * lda * sizeof(float), room, [&](int64_t row, void* block) {
        weights.template prepare<T>(call, row, static_cast<float*>(block) + row * lda);
      }));
  if (M == 1)
    stream_panels<T, Out>(team, call, weights.shape.bytes,
                       [&](const char* panel, int64_t distance, auto& products) TOKA_ALWAYS {
                         weights.multiply_panels(panel, distance, a, products);
                       });
  else
    each_panel<T, Out>(team, call, weights.shape.bytes, lda * sizeof(float),
                       [&](const char* panel, int64_t row0, int64_t rows, F* tile, float*) {
                         direct_rows(weights, panel, a + row0 * lda, lda, rows, tile);
                       });
}

// What multiplies rows of type T straight from panels.
template <class Weights, class T>
struct Direct {
  typedef Weights Type;
};
#if defined(TOKA_INT16_PAIRS)
template <>
struct Direct<Int8Weights, bf16> {
  typedef Int8ByLevels Type;
};
#endif
#if defined(TOKA_INT4_DOT)
template <>
struct Direct<Int4Weights, bf16> {
  typedef Int4ByLevels Type;
};
#endif

template <class Weights, class T, class Out>
void run(Team& team, const LinearCall& call, void* room) {
  typedef typename Direct<Weights, T>::Type Rows;
  if (call.num_rows <= Rows::MAX_DIRECT_ROWS)
    run_direct<Rows, T, Out>(team, call, room);
  else
    run_many<Weights, T, Out>(team, call, room);
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
