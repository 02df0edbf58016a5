// The ends of a linear layer that do not depend on the weight's format: rows of x made ready, tasks
// cut, and what happens to a finished tile.
#pragma once

#include <algorithm>

#include "linear.h"
#include "norm.h"
#include "parallel.h"

namespace toka {

// Bytes of activations that a block of rows may take, so that it stays in the L2 cache.
constexpr int64_t ROW_BLOCK_BYTES = 192 * 1024;

// Tasks that a block of rows and all panels are cut into, for each thread.
constexpr int64_t TASKS_PER_THREAD = 8;

// Of K: a slice of an expanded panel takes 16 KB, half of the smallest L1 cache.
constexpr int64_t K_SLICE = 256;

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Panels of NR columns; those of a gated weight's halves alternate.
inline int64_t num_panels(int64_t out_features, bool gated) {
  return round_up(out_features, NR) / NR * (gated ? 2 : 1);
}

// Runs body(row0, rows, first_panel, last_panel) over all pairs of a block of rows and a few panels
// (of one half). Tasks of a block of rows come one after the other.
template <class Body>
void row_panel_tasks(Team& team, const LinearCall& call, int64_t row_bytes, Body&& body) {
  const int64_t M = call.num_rows, panels = num_panels(call.out_features, false);
  int64_t block = std::max<int64_t>(8 * MR, ROW_BLOCK_BYTES / row_bytes / MR * MR);
  const int64_t blocks = (M + block - 1) / block;
  block = round_up((M + blocks - 1) / blocks, MR);
  const int64_t chunks = std::min<int64_t>(panels, team.size() * TASKS_PER_THREAD);
  team.pieces(blocks * chunks, 1, [&](int64_t task, int64_t) {
    const int64_t row0 = task / chunks * block, chunk = task % chunks;
    if (row0 < M)
      body(row0, std::min(block, M - row0), chunk * panels / chunks, (chunk + 1) * panels / chunks);
  });
}

// Rows made ready for a product, as prepare(row, block) writes them into a block of `bytes`. Of
// several rows there is one block for all threads, `shared`; of a row or two each thread makes its
// own, which takes less than waiting for another's.
template <class Prepare>
void* ready_rows(Team& team, int64_t num_rows, size_t bytes, void* shared, Prepare&& prepare) {
  if (num_rows <= MAX_STREAM_ROWS) {
    thread_local Scratch own;
    char* block = own.get<char>(bytes);
    for (int64_t row = 0; row < num_rows; row++) prepare(row, block);
    return block;
  }
  team.pieces(num_rows, 8, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) prepare(row, shared);
  });
  team.barrier();
  return shared;
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

}  // namespace toka
