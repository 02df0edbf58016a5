// Dense layers: small batches stream the weights, larger ones reuse expanded panels. See linear.h.
#include "linear.h"

#include <algorithm>

#include "norm.h"
#include "parallel.h"

namespace toka {
namespace {

// Bytes of activations that a block of rows may take, so that it stays in the L2 cache.
constexpr int64_t ROW_BLOCK_BYTES = 192 * 1024;

// Of K: a slice of an expanded panel takes 16 KB, half of the smallest L1 cache.
constexpr int64_t K_SLICE = 256;

// More rows than this are limited by arithmetic, not by the stream of weights.
constexpr int MAX_STREAMING_ROWS = 4;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

template <class T>
struct Shape {
  static constexpr int PACK = Operand<T>::PACK;
  int64_t panels, steps, panel_size;

  Shape(int64_t out_features, int64_t in_features, bool gated)
      : panels(round_up(out_features, NR) / NR * (gated ? 2 : 1)),
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

// One row of x as operands: normalised if asked, converted, padded to a whole number of steps.
template <class T, class A>
void prepare_row(const LinearCall& call, int64_t row, A* out, int64_t padded) {
  const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
  const int64_t K = call.in_features;
  if (call.norm_weight != nullptr) {
    thread_local Scratch scratch;
    T* normalized = std::is_same<T, A>::value ? reinterpret_cast<T*>(out) : scratch.get<T>(K);
    normalize_row(x, K, call.norm_eps, call.norm_weight, normalized);
    x = normalized;
  }
  int64_t k = 0;
  if (static_cast<const void*>(x) != out) {
    for (; k + W <= K; k += W) store(out + k, load(x + k));
    for (; k < K; k++) assign(out + k, to_float(x[k]));
  }
  for (k = K; k < padded; k++) assign(out + k, 0.0f);
}

// Columns of a tile that exist, bias, residual and the conversion to the output's type.
template <class T, class Out>
struct Epilogue {
  const LinearCall& call;

  TOKA_INLINE void finish(F* v, int64_t row, int64_t column0) const {
    if (call.residual != nullptr) {
      const T* r = static_cast<const T*>(call.residual) + row * call.residual_stride + column0;
      for (int n = 0; n < 2; n++) v[n] += load(r + n * W);
    }
    Out* out = static_cast<Out*>(call.out) + row * call.out_stride + column0;
    for (int n = 0; n < 2; n++) store(out + n * W, v[n]);
  }

  __attribute__((noinline)) void finish_tail(const F* v, int64_t row, int64_t column0) const {
    const T* residual = static_cast<const T*>(call.residual);
    Out* out = static_cast<Out*>(call.out) + row * call.out_stride;
    for (int64_t c = column0; c < call.out_features; c++) {
      float x = v[(c - column0) / W][(c - column0) % W];
      if (residual != nullptr) x += to_float(residual[row * call.residual_stride + c]);
      assign(out + c, x);
    }
  }

  TOKA_INLINE void add_bias(F* v, int64_t offset, int64_t column0) const {
    if (call.bias == nullptr) return;
    for (int n = 0; n < 2; n++) {
      const int64_t left = call.out_features - column0 - n * W;
      if (left >= W) {
        v[n] += load(call.bias + offset + column0 + n * W);
      } else {
        for (int64_t c = 0; c < left; c++) v[n][c] += call.bias[offset + column0 + n * W + c];
      }
    }
  }

  // `tile` is [rows][2] vectors of the panel's columns; `up` the same of the second half.
  TOKA_INLINE void operator()(F* tile, F* up, int rows, int64_t row0, int64_t column0) const {
    const bool whole = column0 + NR <= call.out_features;
    for (int m = 0; m < rows; m++) {
      F* v = tile + 2 * m;
      add_bias(v, 0, column0);
      if (up != nullptr) {
        F* u = up + 2 * m;
        add_bias(u, call.out_features, column0);
        for (int n = 0; n < 2; n++) v[n] = silu(v[n]) * u[n];
      }
      if (whole)
        finish(v, row0 + m, column0);
      else
        finish_tail(v, row0 + m, column0);
    }
  }
};

// tile[rows][2] += A B over `steps` of one panel, whose layout is B's. rows <= MR.
template <bool STREAMS, class A, class B>
TOKA_INLINE void add_product(const A* a, int64_t lda, const B* panel, int64_t steps, int rows,
                             F* tile) {
  constexpr int WIDE = 2;
  with_rows(rows, [&](auto constant) {
    constexpr int M = decltype(constant)::value;
    constexpr int N = M * WIDE <= MR * NV ? WIDE : NV;
    for (int v = 0; v < WIDE; v += N) {
      F acc[M][N];
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = tile[WIDE * m + v + n];
      multiply<M, N, STREAMS && M <= MAX_STREAMING_ROWS>(a, lda, panel + v * W * Operand<B>::PACK, NR, int(steps), acc);
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) tile[WIDE * m + v + n] = acc[m][n];
    }
  });
}

[[maybe_unused]] void expand_panel(const bf16* panel, int64_t steps, float* out) {
  for (int64_t k = 0; k < steps; k++)
    for (int n = 0; n < 2; n++) {
      const U pairs = load_as<U>(panel + (k * NR + n * W) * 2);
      store(out + 2 * k * NR + n * W, pair_lo(pairs));
      store(out + (2 * k + 1) * NR + n * W, pair_hi(pairs));
    }
}

// A block of rows times one panel. Goes over K in slices whose part of the panel stays in the L1
// cache while all rows pass by; bf16 slices are expanded to floats where that pays.
template <class T, class A>
void panel_product(const A* a, int64_t lda, const T* panel, int64_t steps, int64_t rows,
                   F* tile, float* expanded) {
  constexpr bool EXPANDS = std::is_same<T, bf16>::value && !HAS_BF16_DOT;
  constexpr int PACK = Operand<T>::PACK;
  const int64_t tiles = (rows + MR - 1) / MR, tile_rows = (rows + tiles - 1) / tiles;
  const bool expand = EXPANDS && tiles > 2;
  const int64_t slice = tiles == 1 ? steps : K_SLICE / PACK;
  std::memset(static_cast<void*>(tile), 0, rows * 2 * sizeof(F));
  for (int64_t k = 0; k < steps; k += slice) {
    const int64_t count = std::min(slice, steps - k);
    const T* part = panel + k * NR * PACK;
    if constexpr (EXPANDS) {
      if (expand) expand_panel(part, count, expanded);
    }
    for (int64_t m = 0; m < rows; m += tile_rows) {
      const int n = int(std::min(tile_rows, rows - m));
      const A* row = a + m * lda + k * PACK;
      if (expand)
        add_product<false>(reinterpret_cast<const float*>(row), lda, static_cast<const float*>(expanded),
                    count * PACK, n, tile + 2 * m);
      else if (tiles == 1)
        add_product<true>(row, lda, part, count, n, tile + 2 * m);
      else
        add_product<false>(row, lda, part, count, n, tile + 2 * m);
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
  float* expanded = scratch.get<float>(K_SLICE * NR + 2 * rows * 2 * W);
  F* tiles[2] = {reinterpret_cast<F*>(expanded + K_SLICE * NR), nullptr};
  if (call.gated) tiles[1] = tiles[0] + 2 * rows;
  for (int64_t p = first; p < last; p++) {
    for (int h = 0; h < halves; h++)
      panel_product(a, lda, packed + (p * halves + h) * shape.panel_size, shape.steps, rows,
                    tiles[h], expanded);
    epilogue(tiles[0], tiles[1], int(rows), row0, p * NR);
  }
}

template <class T, class Out>
void run(const LinearCall& call) {
  typedef typename Operand<T>::A A;
  const Shape<T> shape(call.out_features, call.in_features, call.gated);
  const int64_t padded = shape.steps * shape.PACK;
  const bool direct = std::is_same<T, A>::value && padded == call.in_features &&
                      call.norm_weight == nullptr;
  const int64_t M = call.num_rows;
  const A* a = static_cast<const A*>(call.x);
  int64_t lda = call.x_stride;
  if (!direct) {
    thread_local Scratch scratch;
    A* prepared = scratch.get<A>(M * padded);
    parallel_pieces(M, 8, call.threads, [&](int64_t first, int64_t last) {
      for (int64_t m = first; m < last; m++)
        prepare_row<T>(call, m, prepared + m * padded, padded);
    });
    a = prepared;
    lda = padded;
  }
  const int64_t panels = call.gated ? shape.panels / 2 : shape.panels;
  int64_t block = std::max<int64_t>(8 * MR, ROW_BLOCK_BYTES / (padded * sizeof(A)) / MR * MR);
  const int64_t blocks = (M + block - 1) / block;
  block = round_up((M + blocks - 1) / blocks, MR);
  // Tasks of a block of rows come one after the other, each over a few panels.
  const int64_t grain = std::max<int64_t>(1, panels / (call.threads * 8));
  const int64_t chunks = (panels + grain - 1) / grain;
  parallel_pieces(blocks * chunks, 1, call.threads, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; task++) {
      const int64_t row0 = task / chunks * block;
      const int64_t panel0 = task % chunks * grain;
      if (row0 >= M) continue;
      panels_task<T, Out>(call, a + row0 * lda, lda, row0, std::min(block, M - row0), panel0,
                          std::min(panel0 + grain, panels));
    }
  });
}

}  // namespace

int64_t packed_elements(int64_t out_features, int64_t in_features, bool gated, Type type) {
  if (type == Type::BFloat16) {
    const Shape<bf16> shape(out_features, in_features, gated);
    return shape.panels * shape.panel_size;
  }
  const Shape<float> shape(out_features, in_features, gated);
  return shape.panels * shape.panel_size;
}

void pack_weight(const void* weight, int64_t out_features, int64_t in_features, bool gated,
                 Type type, void* packed, int threads) {
  if (type == Type::BFloat16)
    pack(static_cast<const bf16*>(weight), out_features, in_features, gated,
         static_cast<bf16*>(packed), threads);
  else
    pack(static_cast<const float*>(weight), out_features, in_features, gated,
         static_cast<float*>(packed), threads);
}

void packed_rows(const void* packed, const int64_t* ids, int64_t num_ids, int64_t in_features,
                 Type type, void* out, int threads) {
  if (type == Type::BFloat16)
    unpack_rows(static_cast<const bf16*>(packed), ids, num_ids, in_features,
                static_cast<bf16*>(out), threads);
  else
    unpack_rows(static_cast<const float*>(packed), ids, num_ids, in_features,
                static_cast<float*>(out), threads);
}

void linear(const LinearCall& call) {
  if (call.num_rows == 0) return;
  if (call.weight_type == Type::Float)
    run<float, float>(call);
  else if (call.out_type == Type::Float)
    run<bf16, float>(call);
  else
    run<bf16, bf16>(call);
}

}  // namespace toka
