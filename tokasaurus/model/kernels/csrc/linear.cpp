// Dense layers: small batches stream the weights, larger ones reuse expanded panels. See linear.h.
#include "linear.h"

#include "epilogue.h"
#include "panel_streams.h"
#include "quantized.h"

namespace toka {
namespace {

// Of a panel: a slice of it and a tile's rows beside it fit into the smallest L1 cache, 32 KB.
constexpr int64_t SLICE_BYTES = 20 * 1024;

template <class T>
struct Shape {
  static constexpr int PACK = Operand<T>::PACK;
  int64_t panels, steps, panel_size;

  Shape(int64_t out_features, int64_t in_features, bool gated)
      : panels(num_panels(out_features, gated)),
        steps(round_up(in_features, PACK) / PACK),
        panel_size(steps * NR * PACK) {}
};

template <class T>
void pack(const T* weight, int64_t out_features, int64_t in_features, bool gated, T* packed,
          int threads) {
  constexpr int PACK = Operand<T>::PACK;
  const Shape<T> shape(out_features, in_features, gated);
  parallel_pieces(shape.panels, 8, threads, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; p++) {
      T* panel = packed + p * shape.panel_size;
      std::memset(static_cast<void*>(panel), 0, shape.panel_size * sizeof(T));
      const int64_t half = gated ? p % 2 : 0;
      const int64_t column0 = (gated ? p / 2 : p) * NR;
      const int64_t columns = std::min<int64_t>(NR, out_features - column0);
      for (int64_t c = 0; c < columns; c++) {
        const T* row = weight + (half * out_features + column0 + c) * in_features;
        for (int64_t k = 0; k < in_features; k++)
          panel[(k / PACK * NR + c) * PACK + k % PACK] = row[k];
      }
    }
  });
}

template <class T>
void unpack_rows(const T* packed, const int64_t* ids, int64_t num_ids, int64_t in_features, T* out,
                 int threads) {
  constexpr int PACK = Operand<T>::PACK;
  const Shape<T> shape(NR, in_features, false);
  parallel_pieces(num_ids, 8, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const T* panel = packed + ids[i] / NR * shape.panel_size + ids[i] % NR * PACK;
      T* row = out + i * in_features;
      for (int64_t k = 0; k < in_features; k++) row[k] = panel[k / PACK * NR * PACK + k % PACK];
    }
  });
}

// tile[rows][2] += A B over `steps` of one panel, whose layout is B's. `streams`: it comes from
// memory. rows <= MR.
template <class A, class B>
TOKA_INLINE void add_product(bool streams, const A* a, int64_t lda, const B* panel, int64_t steps,
                             int rows, F* tile) {
  add_to_tile(rows, tile, [&](auto& acc, int v) TOKA_ALWAYS {
    const B* part = panel + v * W * Operand<B>::PACK;
    if (streams)
      multiply(a, lda, part, NR, int(steps), acc, fetch_stream<NR * 4>(panel));
    else
      multiply(a, lda, part, NR, int(steps), acc);
  });
}

// The same for a panel that comes from memory, whose elements are left in `expanded` as floats.
// MR / 2 < rows <= MR.
template <class A>
TOKA_INLINE void add_product_and_expand(const A* a, int64_t lda, const bf16* panel, int64_t steps,
                                        int rows, F* tile, float* expanded) {
  add_to_tile<MR / 2 + 1>(rows, tile, [&](auto& acc, int v) TOKA_ALWAYS {
    multiply(a, lda, panel + v * W * 2, NR, int(steps), acc, fetch_stream<NR * 4>(panel),
             [&](int k, int n, F floats)
                 TOKA_ALWAYS { store(expanded + k * NR + (v + n) * W, floats); });
  });
}

// Steps of a slice at most.
template <class T>
constexpr int64_t slice_steps() {
  return SLICE_BYTES / int64_t(NR * Operand<T>::PACK * sizeof(typename Operand<T>::A));
}

// A block of rows times one panel. Goes over K in slices whose part of the panel stays in the L1
// cache while all rows pass by. The first tile's product fetches it from memory, and leaves floats
// of bf16 to the others where they need them.
template <class T, class A>
void panel_product(const A* a, int64_t lda, const T* panel, int64_t steps, int64_t rows,
                   F* tile, float* expanded) {
  constexpr bool EXPANDS = std::is_same<T, bf16>::value && !HAS_BF16_DOT;
  constexpr int PACK = Operand<T>::PACK;
  const int64_t tiles = (rows + MR - 1) / MR, tile_rows = (rows + tiles - 1) / tiles;
  constexpr int64_t MOST = slice_steps<T>();
  const int64_t slices = tiles == 1 ? 1 : (steps + MOST - 1) / MOST;
  const int64_t slice = (steps + slices - 1) / slices;
  std::memset(static_cast<void*>(tile), 0, rows * 2 * sizeof(F));
  for (int64_t k = 0; k < steps; k += slice) {
    const int64_t count = std::min(slice, steps - k);
    const T* part = panel + k * NR * PACK;
    for (int64_t m = 0; m < rows; m += tile_rows) {
      const int n = int(std::min(tile_rows, rows - m));
      const A* row = a + m * lda + k * PACK;
      F* sums = tile + 2 * m;
      if (!EXPANDS || tiles == 1)
        add_product(m == 0, row, lda, part, count, n, sums);
      else if constexpr (EXPANDS) {
        if (m == 0)
          add_product_and_expand(row, lda, part, count, n, sums, expanded);
        else
          add_product(false, row, lda, static_cast<const float*>(expanded), count * PACK, n, sums);
      }
    }
  }
}

// Panels [first, last) of outputs, rows [row0, row0 + rows): the task of one thread.
template <class T, class Out>
void panels_task(const LinearCall& call, const typename Operand<T>::A* a, int64_t lda, int64_t row0,
                 int64_t rows, int64_t first, int64_t last) {
  const Shape<T> shape(call.out_features, call.in_features, call.gated);
  const T* packed = static_cast<const T*>(call.packed);
  const Epilogue<T, Out> epilogue{call};
  const int halves = call.gated ? 2 : 1;
  thread_local Scratch scratch;
  constexpr int64_t SLICE = SLICE_BYTES / sizeof(float);
  float* expanded = scratch.get<float>(SLICE + 2 * rows * 2 * W);
  F* tiles[2] = {reinterpret_cast<F*>(expanded + SLICE), nullptr};
  if (call.gated) tiles[1] = tiles[0] + 2 * rows;
  for (int64_t p = first; p < last; p++) {
    for (int h = 0; h < halves; h++)
      panel_product(a, lda, packed + (p * halves + h) * shape.panel_size, shape.steps, rows,
                    tiles[h], expanded);
    epilogue(tiles[0], tiles[1], int(rows), row0, p * NR);
  }
}

template <class T, class Out>
void run(Team& team, const LinearCall& call, void* room) {
  typedef typename Operand<T>::A A;
  const Shape<T> shape(call.out_features, call.in_features, call.gated);
  const int64_t padded = shape.steps * shape.PACK;
  const bool direct = std::is_same<T, A>::value && padded == call.in_features &&
                      call.norm_weight == nullptr;
  const A* a = static_cast<const A*>(call.x);
  int64_t lda = call.x_stride;
  if (!direct) {
    const size_t bytes = call.num_rows * padded * sizeof(A);
    a = static_cast<const A*>(
        ready_rows(team, call.num_rows, bytes, room, [&](int64_t row, void* block) {
          prepare_row<T>(call, row, static_cast<A*>(block) + row * padded, padded);
        }));
    lda = padded;
  }
  const auto stream = [&](auto rows) TOKA_ALWAYS {
    constexpr int M = decltype(rows)::value;
    stream_panels<T, Out, M>(team, call, shape.panel_size * sizeof(T),
                             [&](const char* panel, int64_t distance, auto& sums) TOKA_ALWAYS {
                               std::memset(static_cast<void*>(&sums), 0, sizeof(sums));
                               multiply_panels<M>(a, lda, reinterpret_cast<const T*>(panel),
                                                  distance / int64_t(sizeof(T)), shape.steps, sums);
                             });
  };
  if (call.num_rows == 1)
    stream(Rows<1>());
  else if (call.num_rows == 2)
    stream(Rows<2>());
  else
    row_panel_tasks(team, call, padded * sizeof(A),
                    [&](int64_t row0, int64_t rows, int64_t first, int64_t last) {
                      panels_task<T, Out>(call, a + row0 * lda, lda, row0, rows, first, last);
                    });
}

}  // namespace

int64_t packed_bytes(int64_t out_features, int64_t in_features, bool gated, Type type,
                     Format format) {
  if (format.kind != Format::PLAIN)
    return quantized_bytes(out_features, in_features, gated, format);
  if (type == Type::BFloat16) {
    const Shape<bf16> shape(out_features, in_features, gated);
    return shape.panels * shape.panel_size * sizeof(bf16);
  }
  const Shape<float> shape(out_features, in_features, gated);
  return shape.panels * shape.panel_size * sizeof(float);
}

void pack_weight(const void* weight, int64_t out_features, int64_t in_features, bool gated,
                 Type type, Format format, void* packed, int threads) {
  if (format.kind != Format::PLAIN)
    pack_quantized(weight, out_features, in_features, gated, type, format, packed, threads);
  else if (type == Type::BFloat16)
    pack(static_cast<const bf16*>(weight), out_features, in_features, gated,
         static_cast<bf16*>(packed), threads);
  else
    pack(static_cast<const float*>(weight), out_features, in_features, gated,
         static_cast<float*>(packed), threads);
}

void packed_rows(const void* packed, const int64_t* ids, int64_t num_ids, int64_t in_features,
                 Type type, Format format, void* out, int threads) {
  if (format.kind != Format::PLAIN)
    quantized_rows(packed, ids, num_ids, in_features, type, format, out, threads);
  else if (type == Type::BFloat16)
    unpack_rows(static_cast<const bf16*>(packed), ids, num_ids, in_features,
                static_cast<bf16*>(out), threads);
  else
    unpack_rows(static_cast<const float*>(packed), ids, num_ids, in_features,
                static_cast<float*>(out), threads);
}

size_t linear_room(const LinearCall& call) {
  // Floats at most, and sums of groups or a scale.
  const int64_t row = round_up(call.in_features, CODES) + call.in_features / MIN_GROUP_SIZE + 1;
  return call.num_rows > MAX_STREAM_ROWS ? call.num_rows * row * sizeof(float) : 0;
}

void linear(Team& team, const LinearCall& call, void* room) {
  if (call.num_rows == 0) return;
  if (call.format.kind == Format::INT8)
    linear_int8(team, call, room);
  else if (call.format.kind != Format::PLAIN)
    linear_weight_only(team, call, room);
  else if (call.type == Type::Float)
    run<float, float>(team, call, room);
  else if (call.out_type == Type::Float)
    run<bf16, float>(team, call, room);
  else
    run<bf16, bf16>(team, call, room);
}

Ahead linear_ahead(const Team& team, const LinearCall& call) {
  const PanelShare share(call, team.rank(), team.size());
  const int64_t streamed_rows = call.format.kind == Format::PLAIN ? MAX_STREAM_ROWS : 1;
  if (call.num_rows > streamed_rows || share.steps() == 0) return {};
  const int64_t bytes = packed_bytes(NR, call.in_features, call.gated, call.type, call.format);
  Ahead ahead;
  ahead.start = static_cast<const char*>(call.packed) + share.panel(0) * bytes;
  ahead.distance = share.distance() * bytes;
  ahead.runs = share.streams(0);
  ahead.bytes = std::min(share.shortest() * bytes, AHEAD_BYTES / ahead.runs);
  return ahead;
}

void linear(const LinearCall& call) {
  if (call.num_rows == 0) return;
  thread_local Scratch scratch;
  char* room = scratch.get<char>(linear_room(call));
  parallel_region(call.threads, [&](Team& team) { linear(team, call, room); });
}

}  // namespace toka
