// Tiles of keys that few query rows read straight from the cache, all heads of an item together.
//
// Memory decides here: blocks lie anywhere and are short, so that the machine would not see them
// coming. Lines of the values are fetched while scores are computed, and of the next tile's keys
// while outputs are, block after block or from all blocks in turns.
#pragma once

#include <algorithm>

#include "attention_product.h"
#include "attention_rows.h"

namespace toka {

// Keys of an item, or values: what lies together in each block, and where the blocks are.
struct HeadsOfBlocks {
  const char* base;  // of the item's first head in block 0
  const int32_t* blocks;
  int64_t block_bytes, item_bytes;  // of a block, and of the item's heads in it
};

// Walks over the blocks that begin at tokens [begin, end), a piece at a time. Whole blocks that lie
// one after the other are one stream, which the machine itself reads ahead; others are streams of
// their own, and pieces come from all in turns, as memory is faster at several streams.
class FetchAhead {
 public:
  FetchAhead() = default;
  FetchAhead(const HeadsOfBlocks& heads, int64_t begin, int64_t end, int64_t page_size)
      : heads_(heads),
        first_((begin + page_size - 1) / page_size),
        last_((end + page_size - 1) / page_size),
        block_(first_) {
    if (first_ >= last_) return;
    left_ = heads.item_bytes;
    position_ = heads.base + heads.blocks[first_] * heads.block_bytes;
    in_turns_ = heads.item_bytes < heads.block_bytes;
    for (int64_t i = first_ + 1; i < last_; i++)
      in_turns_ |= heads.blocks[i] != heads.blocks[i - 1] + 1;
    if (!in_turns_) left_ *= last_ - first_;
  }

  // Where the next `bytes` lie; `otherwise` when all are taken.
  TOKA_INLINE const char* take(int64_t bytes, const void* otherwise) {
    if (left_ <= 0) return static_cast<const char*>(otherwise);
    const char* piece = position_;
    if (in_turns_) {
      turn(bytes);
    } else {
      position_ += bytes;
      left_ -= bytes;
    }
    return piece;
  }

 private:
  void turn(int64_t bytes) {
    if (block_ == first_) piece_ = bytes;  // of all blocks
    if (++block_ == last_) {
      block_ = first_;
      offset_ += piece_;
      left_ -= piece_;
    }
    position_ = heads_.base + heads_.blocks[block_] * heads_.block_bytes + offset_;
  }

  HeadsOfBlocks heads_{};
  int64_t first_ = 0, last_ = 0, block_ = 0, offset_ = 0, piece_ = 0;
  int64_t left_ = 0;  // of all blocks together, or of each if they take turns
  bool in_turns_ = false;
  const char* position_ = nullptr;
};

template <class T>
class StreamedTiles {
  typedef typename Operand<T>::A A;
  static constexpr int64_t PACK = Operand<T>::PACK;

 public:
  StreamedTiles(const AttentionCall& call, QueryRows<T>& rows)
      : call_(call), shape_(call.cache), rows_(rows) {}

  // Whether vectors of keys stay within a block; other pages must be gathered.
  static bool fits(const CacheShape& shape) { return shape.page_size % W == 0; }

  // The item's tile of keys [begin, end). `next` with keys from `next_begin` on follows, or null.
  void run(const Item& item, int64_t begin, int64_t end, const Item* next, int64_t next_begin) {
    item_ = &item;
    keys_ = keys_of(item);
    values_ = values_of(item);
    ahead_ = FetchAhead(values_, begin, end, shape_.page_size);
    const int64_t rows = rows_.per_head();
    for_rows(rows, [&](auto constant, int64_t i) {
      constexpr int M = decltype(constant)::value;
      score<M, streamed_vectors(M)>(i, begin, end, 0);
    });
    rows_.softmax(0, item.num_kv_heads * rows, begin, end);
    ahead_ = next == nullptr ? FetchAhead()
                             : FetchAhead(keys_of(*next), next_begin, end_of_tile(*next, next_begin),
                                          shape_.page_size);
    for (int64_t head = 0; head < item.num_kv_heads; head++)
      for_rows(rows, [&](auto constant, int64_t i) {
        constexpr int M = decltype(constant)::value;
        output<M, streamed_vectors(M)>(head, head * rows + i, begin, end, 0);
      });
  }

  // Brings the keys of the item's first tile into the cache.
  void fetch(const Item& item) const {
    FetchAhead ahead(keys_of(item), item.kv_begin, end_of_tile(item, item.kv_begin),
                     shape_.page_size);
    while (const char* line = ahead.take(64, nullptr)) __builtin_prefetch(line);
  }

  // Tiles end with a block, or divide it; their keys fit into L1, and are there when they are needed.
  int64_t end_of_tile(const Item& item, int64_t begin) const {
    const int64_t page = shape_.page_size;
    const int64_t bytes = item.num_kv_heads * shape_.head_dim * int64_t(sizeof(T));
    const int64_t tile = bytes * TILE <= L1_SHARE ? TILE : TILE / 2;
    int64_t end = begin + (page <= tile ? tile / page * page : tile);
    if (page > tile) end = std::min(end, begin / page * page + page);
    return std::min<int64_t>(end, item.kv_end);
  }

 private:
  static constexpr int64_t L1_SHARE = 24 << 10;
  static constexpr int PIECE = 8;  // steps of a product between looks at what to fetch

  template <class Function>
  TOKA_INLINE static void for_rows(int64_t rows, Function&& f) {
    for (int64_t i = 0; i < rows; i += MR)
      with_rows(int(std::min<int64_t>(MR, rows - i)), [&](auto constant) { f(constant, i); });
  }

  HeadsOfBlocks keys_of(const Item& item) const {
    const int64_t size = sizeof(T);
    return {static_cast<const char*>(call_.k_cache) + item.kv_head * shape_.k_head_size() * size,
            call_.block_ids + item.block_offset, shape_.k_block_size() * size,
            item.num_kv_heads * shape_.k_head_size() * size};
  }

  HeadsOfBlocks values_of(const Item& item) const {
    const int64_t size = sizeof(T);
    return {static_cast<const char*>(call_.v_cache) + item.kv_head * shape_.v_head_size() * size,
            call_.block_ids + item.block_offset, shape_.v_block_size() * size,
            item.num_kv_heads * shape_.v_head_size() * size};
  }

  static const T* block_of(const HeadsOfBlocks& heads, int64_t block) {
    return reinterpret_cast<const T*>(heads.base + heads.blocks[block] * heads.block_bytes);
  }

  // Scores of rows [i, i + M) of each head with vectors [v, ...) of keys, N at a time, then fewer.
  template <int M, int N>
  TOKA_INLINE void score(int64_t i, int64_t begin, int64_t end, int64_t v) {
    const int64_t page = shape_.page_size, vectors = (end - begin + W - 1) / W;
    const int steps = int((shape_.head_dim + PACK - 1) / PACK);
    for (; v + N <= vectors; v += N) {
      const T* columns[N];
      for (int n = 0; n < N; n++) {
        const int64_t token = begin + (v + n) * W;
        columns[n] = block_of(keys_, token / page) + token % page * PACK;
      }
      for (int64_t head = 0; head < item_->num_kv_heads; head++) {
        const int64_t row = head * rows_.per_head() + i;
        const A* q = rows_.template queries<A>(row);
        F acc[M][N] = {};
        for (int step = 0; step < steps; step += PIECE) {
          const int count = std::min(PIECE, steps - step);
          multiply_vectors(q + step * PACK, rows_.q_stride(), columns, page, count, acc,
                           ahead_.take(PIECE * N * W * 4, columns[0]));
          for (int n = 0; n < N; n++) columns[n] += count * page * PACK;
        }
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++) store(rows_.scores(row + m) + (v + n) * W, acc[m][n]);
      }
    }
    if constexpr (N > 1) {
      if (v < vectors) score<M, fewer_vectors(N)>(i, begin, end, v);
    }
  }

  // output[row .. row + M) += P V for vectors [v, ...) of V, N at a time, then fewer.
  template <int M, int N>
  TOKA_INLINE void output(int64_t head, int64_t row, int64_t begin, int64_t end, int64_t v) {
    const int64_t page = shape_.page_size, padded = rows_.padded(), vectors = padded / W;
    const A* p = rows_.template probabilities<A>(row);
    for (; v + N <= vectors; v += N) {
      F acc[M][N];
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) acc[m][n] = load(rows_.output(row + m) + (v + n) * W);
      for (int64_t t = begin; t < end;) {
        const int64_t offset = t % page, count = std::min(page - offset, end - t);
        const T* values = block_of(values_, t / page) + head * shape_.v_head_size() +
                          (offset / PACK * padded + v * W) * PACK;
        add_values(p + (t - begin), values, int(count), acc);
        t += count;
      }
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) store(rows_.output(row + m) + (v + n) * W, acc[m][n]);
    }
    if constexpr (N > 1) {
      if (v < vectors) output<M, fewer_vectors(N)>(head, row, begin, end, v);
    }
  }

  // acc += P V for `count` tokens of one block.
  template <int M, int N>
  TOKA_INLINE void add_values(const A* p, const T* values, int count, F (&acc)[M][N]) {
    const int64_t padded = rows_.padded();
    const int steps = count / int(PACK);
    const T* columns[N];
    for (int n = 0; n < N; n++) columns[n] = values + n * W * PACK;
    for (int step = 0; step < steps; step += PIECE) {
      const int some = std::min(PIECE, steps - step);
      multiply_vectors(p + step * PACK, TILE, columns, padded, some, acc,
                       ahead_.take(PIECE * N * W * 4, columns[0]));
      for (int n = 0; n < N; n++) columns[n] += some * padded * PACK;
    }
    if (PACK == 2 && count % 2 == 1) {
      // The pair's second token is not there yet: whatever the cache holds must not count.
      T pair[N * W * 2];
      for (int n = 0; n < N; n++) {
        for (int w = 0; w < W; w++) {
          pair[2 * (n * W + w)] = columns[n][2 * w];
          assign(&pair[2 * (n * W + w) + 1], 0.0f);
        }
        columns[n] = pair + 2 * n * W;
      }
      multiply_vectors(p + count - 1, TILE, columns, padded, 1, acc,
                       reinterpret_cast<const char*>(pair));
    }
  }

  const AttentionCall& call_;
  const CacheShape& shape_;
  QueryRows<T>& rows_;
  const Item* item_ = nullptr;
  HeadsOfBlocks keys_{}, values_{};
  FetchAhead ahead_;
};

}  // namespace toka
