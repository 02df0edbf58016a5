// Tiles of keys as floats, where blocks don't hold whole vectors or many query rows share the work of
// expanding them.
#pragma once

#include <algorithm>

#include "attention_cache.h"
#include "attention_rows.h"

namespace toka {

template <class T>
class ExpandedTiles {
 public:
  ExpandedTiles(const AttentionCall& call, QueryRows<T>& rows)
      : call_(call), head_dim_(call.cache.head_dim), rows_(rows) {}

  // The item's tile of keys [begin, end).
  void run(const Item& item, int64_t begin, int64_t end) {
    const int64_t count = end - begin, rows = rows_.per_head();
    keys_ = scratch_.template get<float>(TILE * (head_dim_ + 1 + rows_.padded()));
    values_ = keys_ + TILE * (head_dim_ + 1);
    for (int64_t head = 0; head < item.num_kv_heads; head++) {
      gather_tile<T>(call_, call_.block_ids + item.block_offset, item.kv_head + head, begin, count,
                     keys_, TILE, values_);
      const int64_t first = head * rows;
      for_rows(rows, [&](auto constant, int64_t i) {
        score<decltype(constant)::value>(first + i, (count + W - 1) / W);
      });
      rows_.softmax(first, first + rows, begin, end);
      for_rows(rows, [&](auto constant, int64_t i) {
        output<decltype(constant)::value, NV>(first + i, count, 0);
      });
    }
  }

  int64_t end_of_tile(const Item& item, int64_t begin) const {
    return std::min<int64_t>(begin + TILE, item.kv_end);
  }

 private:
  template <class Function>
  TOKA_INLINE static void for_rows(int64_t rows, Function&& f) {
    for (int64_t i = 0; i < rows; i += MR)
      with_rows(int(std::min<int64_t>(MR, rows - i)), [&](auto constant) { f(constant, i); });
  }

  // Scores of rows [i, i + M) with all vectors of keys.
  template <int M>
  TOKA_INLINE void score(int64_t i, int64_t vectors) {
    int64_t v = 0;
    for (; v + NV <= vectors; v += NV) score_vectors<M, NV>(i, v);
    for (; v < vectors; v++) score_vectors<M, 1>(i, v);
  }

  template <int M, int N>
  TOKA_INLINE void score_vectors(int64_t i, int64_t v) {
    F acc[M][N] = {};
    multiply(rows_.template queries<float>(i), rows_.q_stride(), keys_ + v * W, TILE,
             int(head_dim_), acc);
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) store(rows_.scores(i + m) + (v + n) * W, acc[m][n]);
  }

  // output[i .. i + M) += P V for vectors [v, ...) of V, N at a time, then fewer.
  template <int M, int N>
  TOKA_INLINE void output(int64_t i, int64_t count, int64_t v) {
    const int64_t padded = rows_.padded(), vectors = padded / W;
    for (; v + N <= vectors; v += N) {
      F acc[M][N];
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = load(rows_.output(i + m) + (v + n) * W);
      multiply(rows_.template probabilities<float>(i), TILE, values_ + v * W, padded, int(count),
               acc);
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) store(rows_.output(i + m) + (v + n) * W, acc[m][n]);
    }
    if constexpr (N > 1) {
      if (v < vectors) output<M, N / 2>(i, count, v);
    }
  }

  const AttentionCall& call_;
  const int64_t head_dim_;
  QueryRows<T>& rows_;
  float *keys_ = nullptr, *values_ = nullptr;  // [H][TILE], [TILE][padded H]
  static thread_local Scratch scratch_;
};

template <class T>
thread_local Scratch ExpandedTiles<T>::scratch_;

}  // namespace toka
