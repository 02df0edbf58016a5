// Tiles of keys that few query rows read straight from the cache, all heads of an item together.
//
// Memory decides here: blocks lie anywhere and are short, so that the machine would not see them
// coming. Lines of the values are fetched while scores are computed, and of the next tile's keys
// while outputs are.
#pragma once

#include <algorithm>

#include "attention_product.h"
#include "attention_rows.h"

namespace toka {

// Keys of an item, or values: what lies together in each block.
struct HeadsOfBlocks {
  const char* base;  // of the item's first head in block 0
  int64_t block_bytes, item_bytes;  // of a block, and of the item's heads in it
};

// What the steps of a product fetch: LINES lines each, from a place of their own.
template <int LINES>
struct FetchInTurns {
  const char* const* places;
  int64_t offset;

  TOKA_INLINE void operator()(int step) const {
    const char* start = places[step] + offset;
    for (int line = 0; line < LINES; line++) __builtin_prefetch(start + 64 * line);
  }
};

// Walks over blocks, a round at a time: the lines that the steps of a short product fetch. Whole
// blocks that lie one after the other are one stream; others are streams of their own, which take
// turns within a round, as the machine itself reads ahead of several streams if each is slow.
class FetchAhead {
 public:
  static constexpr int MOST_STEPS = 8;  // of a round

  explicit FetchAhead(int steps) : steps_(steps) {}

  void start(const HeadsOfBlocks& heads, const int32_t* blocks, int64_t count, int64_t step_bytes) {
    num_streams_ = next_ = 0;
    bool is_one = heads.item_bytes == heads.block_bytes;
    for (int64_t i = 0; i < count; i++) {
      is_one &= i == 0 || blocks[i] == blocks[i - 1] + 1;
      streams_[num_streams_++] = heads.base + blocks[i] * heads.block_bytes;
    }
    stream_bytes_ = heads.item_bytes;
    if (is_one && count > 1) {
      num_streams_ = 1;
      stream_bytes_ *= count;
    }
    step_bytes_ = step_bytes;
    take_turns();
  }

  // From now on the same lines again, which are there.
  void stop() {
    offset_ = advance_ = 0;
    limit_ = 1;
  }

  template <int LINES>
  TOKA_INLINE FetchInTurns<LINES> round() {
    if (offset_ >= limit_) take_turns();
    const int64_t offset = offset_;
    offset_ = offset + advance_;
    return {places_, offset};
  }

  void fetch_all() const {
    for (int64_t offset = 0; offset < stream_bytes_; offset += 64)
      for (int64_t i = 0; i < num_streams_; i++) __builtin_prefetch(streams_[i] + offset);
  }

 private:
  // Takes up the next streams.
  void take_turns() {
    const int64_t count = std::min(steps_, num_streams_ - next_);
    if (count <= 0) return stop();
    int64_t turns = 1;
    while (turns < count) turns *= 2;
    const int64_t steps = steps_ / turns;  // of a stream's turn; both are powers of two
    for (int64_t i = 0; i < steps_; i++)
      places_[i] = streams_[next_ + std::min(i / steps, count - 1)] + i % steps * step_bytes_;
    offset_ = 0;
    advance_ = steps * step_bytes_;
    limit_ = stream_bytes_;
    next_ += count;
  }

  const int64_t steps_;  // of a round
  int64_t num_streams_ = 0, next_ = 0, stream_bytes_ = 0, step_bytes_ = 0;
  int64_t offset_ = 0, advance_ = 0, limit_ = 1;
  const char* places_[MOST_STEPS] = {};
  const char* streams_[TILE / 8 + 1];
};

template <class T>
class StreamedTiles {
  typedef typename Operand<T>::A A;
  static constexpr int64_t PACK = Operand<T>::PACK;

 public:
  StreamedTiles(const AttentionCall& call, QueryRows<T>& rows)
      : call_(call),
        shape_(call.cache),
        rows_(rows),
        round_(std::min(FetchAhead::MOST_STEPS, (shape_.page_size % 16 == 0 ? 16 : 8) / int(PACK))),
        ahead_(round_) {}

  // Whether vectors of keys stay within a block; other pages must be gathered.
  static bool fits(const CacheShape& shape) { return shape.page_size % W == 0; }

  // The item's tile of keys [begin, end). `next` with keys from `next_begin` on follows, or null.
  void run(const Item& item, int64_t begin, int64_t end, const Item* next, int64_t next_begin) {
    if (item_ != &item) {
      item_ = &item;
      keys_ = keys_of(item);
      values_ = values_of(item);
      order_ = order_of(item);
    }
    const Blocks here = blocks_of(item, order_, begin, end);
    locate(here, begin, end);
    ahead_.start(values_, here.ids + here.skipped, here.count - here.skipped, step_bytes());
    const int64_t rows = rows_.per_head();
    for_rows(rows, [&](auto constant, int64_t i) {
      constexpr int M = decltype(constant)::value;
      score<M, streamed_vectors(M, PACK)>(i, 0);
    });
    rows_.softmax(0, item.num_kv_heads * rows, begin, end);
    if (next == nullptr)
      ahead_.stop();
    else if (next == &item)
      start_keys(ahead_, item, keys_, order_, next_begin);
    else
      start_keys(ahead_, *next, keys_of(*next), order_of(*next), next_begin);
    for (int64_t head = 0; head < item.num_kv_heads; head++)
      for_rows(rows, [&](auto constant, int64_t i) {
        constexpr int M = decltype(constant)::value;
        output<M, streamed_vectors(M, PACK)>(head, head * rows + i, 0);
      });
  }

  // Brings the keys of the item's first tile into the cache.
  void fetch(const Item& item) const {
    FetchAhead ahead(round_);
    start_keys(ahead, item, keys_of(item), order_of(item), item.kv_begin);
    ahead.fetch_all();
  }

  // Tiles end with a block, or divide it.
  int64_t end_of_tile(const Item& item, int64_t begin) const {
    const int64_t page = shape_.page_size;
    int64_t end = begin + keys_of_tile(item);
    if (page > TILE / 2) end = std::min(end, begin / page * page + page);
    return std::min<int64_t>(end, item.kv_end);
  }

 private:
  static constexpr int64_t L1_SHARE = 24 << 10;
  static constexpr int64_t LEAST_TILES = 4;  // for tiles of several streams

  // Which blocks make up a tile: the first `tiles` tiles of an item take theirs from as many equal
  // parts of its keys as a tile has blocks, so that memory is read in several long streams.
  struct Order {
    int64_t tile_keys, tiles;
  };

  // Of a tile; the first `skipped` began in the tile before.
  struct Blocks {
    int32_t ids[TILE / 8 + 1];
    int64_t count, skipped;
  };

  // Of full tiles; as many as fit into L1, and are there when they are needed.
  int64_t keys_of_tile(const Item& item) const {
    const int64_t page = shape_.page_size;
    const int64_t bytes = item.num_kv_heads * shape_.head_dim * int64_t(sizeof(T));
    const int64_t tile = bytes * TILE <= L1_SHARE ? TILE : TILE / 2;
    return page <= tile ? tile / page * page : tile;
  }

  Order order_of(const Item& item) const {
    const int64_t tile_keys = keys_of_tile(item);
    const int64_t tiles = (item.kv_end - item.kv_begin) / tile_keys;
    const int64_t end = item.kv_begin + tiles * tile_keys;
    const bool divides = tile_keys > shape_.page_size && item.kv_begin % shape_.page_size == 0;
    const bool in_turns =
        divides && tiles >= LEAST_TILES && sees_all(call_, item, item.kv_begin, end);
    return {tile_keys, in_turns ? tiles : 0};
  }

  Blocks blocks_of(const Item& item, const Order& order, int64_t begin, int64_t end) const {
    const int64_t page = shape_.page_size;
    const int32_t* ids = call_.block_ids + item.block_offset;
    const int64_t tile = (begin - item.kv_begin) / order.tile_keys;
    Blocks blocks;
    if (tile < order.tiles) {
      blocks.count = order.tile_keys / page;
      blocks.skipped = 0;
      for (int64_t i = 0; i < blocks.count; i++)
        blocks.ids[i] = ids[item.kv_begin / page + i * order.tiles + tile];
    } else {
      const int64_t first = begin / page;
      blocks.count = (end + page - 1) / page - first;
      blocks.skipped = begin > first * page;
      for (int64_t i = 0; i < blocks.count; i++) blocks.ids[i] = ids[first + i];
    }
    return blocks;
  }

  void start_keys(FetchAhead& ahead, const Item& item, const HeadsOfBlocks& keys,
                  const Order& order, int64_t begin) const {
    const Blocks blocks = blocks_of(item, order, begin, end_of_tile(item, begin));
    ahead.start(keys, blocks.ids + blocks.skipped, blocks.count - blocks.skipped, step_bytes());
  }

  // Of what a step of the first rows' products reads, and so fetches.
  int64_t step_bytes() const {
    return 64 * lines_per_step(int(std::min<int64_t>(MR, rows_.per_head())));
  }
  static constexpr int lines_per_step(int rows) {
    return (streamed_vectors(rows, PACK) * W * 4 + 63) / 64;
  }

  template <class Function>
  TOKA_INLINE static void for_rows(int64_t rows, Function&& f) {
    for (int64_t i = 0; i < rows; i += MR)
      with_rows(int(std::min<int64_t>(MR, rows - i)), [&](auto constant) { f(constant, i); });
  }

  HeadsOfBlocks keys_of(const Item& item) const {
    const int64_t size = sizeof(T);
    return {static_cast<const char*>(call_.k_cache) + item.kv_head * shape_.k_head_size() * size,
            shape_.k_block_size() * size,
            item.num_kv_heads * shape_.k_head_size() * size};
  }

  HeadsOfBlocks values_of(const Item& item) const {
    const int64_t size = sizeof(T);
    return {static_cast<const char*>(call_.v_cache) + item.kv_head * shape_.v_head_size() * size,
            shape_.v_block_size() * size,
            item.num_kv_heads * shape_.v_head_size() * size};
  }

  // Finds the tile's vectors of keys and pieces of values.
  void locate(const Blocks& blocks, int64_t begin, int64_t end) {
    const int64_t page = shape_.page_size, count = end - begin;
    num_vectors_ = num_pieces_ = 0;
    int64_t offset = begin % page;
    for (int64_t done = 0, i = 0; done < count; i++, offset = 0) {
      const T* k = block_of(keys_, blocks.ids[i]) + offset * PACK;
      const T* v = block_of(values_, blocks.ids[i]) + offset * rows_.padded();
      const int64_t last = std::min(page - offset, count - done);
      for (int64_t t = 0; t < last; t += W) vectors_[num_vectors_++] = k + t * PACK;
      for (int64_t t = 0; t < last; t += round_ * PACK)
        pieces_[num_pieces_++] = v + t * rows_.padded();
      done += last;
    }
    tail_ = int(count % (round_ * PACK));
    if (tail_ > 0) num_pieces_--;
  }

  static const T* block_of(const HeadsOfBlocks& heads, int64_t block) {
    return reinterpret_cast<const T*>(heads.base + block * heads.block_bytes);
  }

  template <int M, int N>
  struct Sums {
    static constexpr int COUNT = num_sums(M, N, PACK);
    F parts[COUNT][M][N] = {};

    TOKA_INLINE F total(int m, int n) const {
      F sum = parts[0][m][n];
      if constexpr (COUNT == 2) sum += parts[1][m][n];
      return sum;
    }
  };

  // Scores of rows [i, i + M) of each head with vectors [v, ...) of keys, N at a time, then fewer.
  template <int M, int N>
  TOKA_INLINE void score(int64_t i, int v) {
    const int64_t ldb = shape_.page_size;
    const int steps = int((shape_.head_dim + PACK - 1) / PACK);
    for (; v + N <= num_vectors_; v += N) {
      const T* columns[N];
      for (int64_t head = 0; head < item_->num_kv_heads; head++) {
        for (int n = 0; n < N; n++) columns[n] = vectors_[v + n] + head * shape_.k_head_size();
        const int64_t row = head * rows_.per_head() + i;
        const A* q = rows_.template queries<A>(row);
        Sums<M, N> sums;
        for (int step = 0; step < steps; step += round_) {
          const int count = std::min(round_, steps - step);
          multiply_vectors(q + step * PACK, rows_.q_stride(), columns, ldb, count, sums.parts,
                           ahead_.round<lines_per_step(M)>());
          for (int n = 0; n < N; n++) columns[n] += round_ * ldb * PACK;
        }
        for (int m = 0; m < M; m++)
          for (int n = 0; n < N; n++) store(rows_.scores(row + m) + (v + n) * W, sums.total(m, n));
      }
    }
    if constexpr (N > 1) {
      if (v < num_vectors_) score<M, fewer_vectors(N)>(i, v);
    }
  }

  // output[row .. row + M) += P V for vectors [v, ...) of V, N at a time, then fewer.
  template <int M, int N>
  TOKA_INLINE void output(int64_t head, int64_t row, int v) {
    const int64_t padded = rows_.padded();
    const int vectors = int(padded) / W;
    const A* p = rows_.template probabilities<A>(row);
    for (; v + N <= vectors; v += N) {
      Sums<M, N> sums;
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
          sums.parts[0][m][n] = load(rows_.output(row + m) + (v + n) * W);
      const int64_t offset = head * shape_.v_head_size() + v * W * PACK;
      const A* probabilities = p;
      for (int i = 0; i < num_pieces_; i++) {
        const T* values = pieces_[i] + offset;
        asm("" : "+r"(values));  // hides that it is a sum, which each column would make again
        const T* columns[N];
        for (int n = 0; n < N; n++) columns[n] = values + n * W * PACK;
        multiply_vectors(probabilities, TILE, columns, padded, round_, sums.parts,
                         ahead_.round<lines_per_step(M)>());
        probabilities += round_ * PACK;
      }
      if (tail_ > 0) add_tail(probabilities, pieces_[num_pieces_] + offset, sums.parts);
      for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++)
          store(rows_.output(row + m) + (v + n) * W, sums.total(m, n));
    }
    if constexpr (N > 1) {
      if (v < vectors) output<M, fewer_vectors(N)>(head, row, v);
    }
  }

  // acc += P V for the keys that are less than a piece.
  template <int S, int M, int N>
  TOKA_INLINE void add_tail(const A* p, const T* values, F (&acc)[S][M][N]) {
    const int64_t padded = rows_.padded();
    const int steps = tail_ / int(PACK);
    const T* columns[N];
    for (int n = 0; n < N; n++) columns[n] = values + n * W * PACK;
    multiply_vectors(p, TILE, columns, padded, steps, acc, FetchNothing());
    if (PACK == 2 && tail_ % 2 == 1) {
      // The pair's second token is not there yet: whatever the cache holds must not count.
      T pair[N * W * 2];
      for (int n = 0; n < N; n++) {
        const T* last = columns[n] + steps * padded * PACK;
        for (int w = 0; w < W; w++) {
          pair[2 * (n * W + w)] = last[2 * w];
          assign(&pair[2 * (n * W + w) + 1], 0.0f);
        }
        columns[n] = pair + 2 * n * W;
      }
      multiply_vectors(p + tail_ - 1, TILE, columns, padded, 1, acc, FetchNothing());
    }
  }

  const AttentionCall& call_;
  const CacheShape& shape_;
  QueryRows<T>& rows_;
  const int round_;  // steps of a product between looks at what to fetch
  FetchAhead ahead_;
  const Item* item_ = nullptr;
  HeadsOfBlocks keys_{}, values_{};
  Order order_{};
  int num_vectors_ = 0, num_pieces_ = 0, tail_ = 0;
  // The tile's vectors of keys, and values of a round's keys each, in the first head; what `tail_`
  // keys are left for lies behind the last whole piece.
  const T* vectors_[TILE / W];
  const T* pieces_[TILE / 8];
};

}  // namespace toka
