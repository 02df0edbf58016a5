// One layer's paged attention: append, flash-style items, merge. See attention.h for the layouts.
#include "attention.h"

#include <algorithm>

#include "attention_cache.h"
#include "attention_merge.h"
#include "parallel.h"

namespace toka {
namespace {

// Keys per tile: with heads of 64 elements of bfloat16, its keys and values and the next one's keys fit into L1.
constexpr int64_t TILE = 64;

// With fewer items per thread, one that is taken ahead may keep a thread waiting.
constexpr int64_t ITEMS_AHEAD = 16;

// Vectors of outputs that M rows accumulate at once.
constexpr int output_vectors(int rows) {
#if defined(__AVX512F__)
  return rows <= 6 ? 4 : 2;
#elif defined(__AVX2__)
  return rows == 1 ? 8 : rows <= 3 ? 4 : 2;
#else
  return rows == 1 ? 4 : 1;
#endif
}

// The queries of an item, its running softmax and its tiles; memory of one thread.
template <class T>
class Worker {
  typedef typename Operand<T>::A A;
  static constexpr int64_t PACK = Operand<T>::PACK;

 public:
  explicit Worker(const AttentionCall& call)
      : call_(call),
        group_(call.num_heads / call.cache.num_kv_heads),
        head_dim_(call.cache.head_dim),
        q_stride_((call.cache.head_dim + 1) / 2 * 2),
        padded_(call.cache.padded_head_dim()) {}

  // `next` is what this thread does afterwards, or null: its first keys are fetched meanwhile.
  void run(const Item& item, const Item* next, float* partials) {
    item_ = &item;
    rows_ = item.num_tokens * group_;
    blocks_ = call_.block_ids + item.block_offset;
    expands_ = call_.cache.page_size % W != 0 || (PACK == 2 && !HAS_BF16_DOT && rows_ > 2 * MR);
    reserve();
    load_queries();
    for (int64_t i = 0; i < rows_; i++) {
      max_[i] = NEG_INF;
      sum_[i] = 0.0f;
    }
    std::memset(output_, 0, rows_ * padded_ * sizeof(float));
    for (int64_t begin = item.kv_begin; begin < item.kv_end;) {
      const int64_t end = tile_end(item, begin);
      if (end < item.kv_end)
        ahead_ = {&item, end};
      else
        ahead_ = {next, next == nullptr ? 0 : next->kv_begin};
      if (expands_)
        expanded_tile(begin, end);
      else
        direct_tile(begin, end);
      begin = end;
    }
    if (item.partial_row >= 0)
      store_partials(partials);
    else
      store_output();
  }

 private:
  int64_t tile_end(const Item& item, int64_t begin) const {
    const int64_t page = call_.cache.page_size;
    int64_t end = begin + (page <= TILE ? TILE / page * page : TILE);
    if (page > TILE) end = std::min(end, begin / page * page + page);
    return std::min<int64_t>(end, item.kv_end);
  }

  const T* keys_of(const int32_t* blocks, int64_t kv_head, int64_t token) const {
    const CacheShape& shape = call_.cache;
    return static_cast<const T*>(call_.k_cache) +
           blocks[token / shape.page_size] * shape.k_block_size() + kv_head * shape.k_head_size();
  }

  const T* values_of(int64_t token) const {
    const CacheShape& shape = call_.cache;
    return static_cast<const T*>(call_.v_cache) +
           blocks_[token / shape.page_size] * shape.v_block_size() +
           item_->kv_head * shape.v_head_size();
  }

  // The keys of the block that is `number` blocks into the next tile, or null. Blocks lie anywhere in
  // memory and are short: the machine would not see them coming.
  const char* keys_ahead(int64_t number) const {
    if (ahead_.item == nullptr) return nullptr;
    const int64_t token = ahead_.begin + number * call_.cache.page_size;
    if (token >= tile_end(*ahead_.item, ahead_.begin)) return nullptr;
    return reinterpret_cast<const char*>(
        keys_of(call_.block_ids + ahead_.item->block_offset, ahead_.item->kv_head, token));
  }

  void reserve() {
    const int64_t expanded = expands_ ? TILE * (head_dim_ + 1 + padded_) : 0;
    float* p = scratch_.template get<float>(rows_ * (q_stride_ + padded_ + 2 + 64) +
                                            2 * rows_ * TILE + expanded + 8 * 64 + 2 * padded_);
    auto take = [&p](int64_t count) {
      float* start = p;
      p += (count + 15) / 16 * 16;
      return start;
    };
    scores_ = take(rows_ * TILE);
    probabilities_ = take(rows_ * TILE);
    output_ = take(rows_ * padded_);
    queries_ = take(rows_ * q_stride_);
    last_pair_ = take(padded_);
    max_ = take(rows_);
    sum_ = take(rows_);
    k_tile_ = take(expands_ ? TILE * (head_dim_ + 1) : 0);
    v_tile_ = take(expands_ ? TILE * padded_ : 0);
  }

  template <class Q>
  void convert_queries(Q* out) {
    for (int64_t i = 0; i < rows_; i++) {
      const T* q = static_cast<const T*>(call_.q) +
                   (item_->token0 + i / group_) * call_.q_stride +
                   (item_->kv_head * group_ + i % group_) * head_dim_;
      Q* row = out + i * q_stride_;
      int64_t h = 0;
      for (; h + W <= head_dim_; h += W) store(row + h, load(q + h));
      for (; h < head_dim_; h++) assign(row + h, to_float(q[h]));
      for (; h < q_stride_; h++) assign(row + h, 0.0f);
    }
  }

  void load_queries() {
    if (expands_)
      convert_queries(queries_);
    else
      convert_queries(reinterpret_cast<A*>(queries_));
  }

  // scores[rows][columns of B] = Q B for `vectors` vectors of B. As many bytes as B has are fetched
  // from `ahead` meanwhile, if it is not null.
  template <class B, class Q>
  void score(const Q* q, const B* b, int64_t ldb, int64_t steps, int64_t vectors, float* out,
             const char* ahead) {
    for (int64_t i = 0; i < rows_; i += MR) {
      const int m = int(std::min<int64_t>(MR, rows_ - i));
      const char* fetched = i == 0 ? ahead : nullptr;
      with_rows(m, [&](auto constant) {
        constexpr int M = decltype(constant)::value;
        int64_t v = 0;
        for (; v + NV <= vectors; v += NV)
          score_tile<M, NV>(q, b, ldb, steps, i, v, out, fetched);
        for (; v < vectors; v++) score_tile<M, 1>(q, b, ldb, steps, i, v, out, fetched);
      });
    }
  }

  template <int M, int N, class B, class Q>
  TOKA_INLINE void score_tile(const Q* q, const B* b, int64_t ldb, int64_t steps, int64_t i,
                              int64_t v, float* out, const char* ahead) {
    F acc[M][N] = {};
    const Q* rows = q + i * q_stride_;
    const B* keys = b + v * W * Operand<B>::PACK;
    if (ahead != nullptr)
      multiply(rows, q_stride_, keys, ldb, int(steps), acc,
               Fetch<N * W * 4>{ahead + v * W * 4 * steps});
    else
      multiply(rows, q_stride_, keys, ldb, int(steps), acc);
    for (int r = 0; r < M; r++)
      for (int n = 0; n < N; n++) store(out + (i + r) * TILE + (v + n) * W, acc[r][n]);
  }

  // Scores of keys [begin, end) become probabilities; outputs so far are rescaled.
  void softmax(int64_t begin, int64_t end) {
    const int64_t columns = (end - begin + W - 1) / W * W;
    for (int64_t i = 0; i < rows_; i++) {
      float* s = scores_ + i * TILE;
      int64_t visible_end = end, visible_begin = begin;
      if (item_->position0 >= 0) {
        const int64_t position = item_->position0 + i / group_;
        visible_end = std::min(end, position + 1);
        if (call_.window > 0) visible_begin = std::max(begin, position - call_.window + 1);
      }
      const int64_t hidden = std::min(visible_begin - begin, columns);
      for (int64_t c = 0; c < hidden; c++) s[c] = NEG_INF;
      for (int64_t c = std::max<int64_t>(visible_end - begin, 0); c < columns; c++) s[c] = NEG_INF;
      F largest = splat(NEG_INF);
      for (int64_t c = 0; c < columns; c += W) {
        F x = load(s + c) * call_.scale;
        if (call_.softcap > 0) {
          const F capped = vtanh(x / call_.softcap) * call_.softcap;
          x = select(x == NEG_INF, x, capped);
        }
        store(s + c, x);
        largest = vmax(largest, x);
      }
      const float new_max = std::max(max_[i], reduce_max(largest));
      if (visible_begin >= visible_end) {
        for (int64_t c = 0; c < columns; c += W) store_probabilities(i, c, F{});
        continue;
      }
      F sum{};
      for (int64_t c = 0; c < columns; c += W) {
        const F p = vexp(load(s + c) - new_max);
        sum += p;
        store_probabilities(i, c, p);
      }
      if (new_max != max_[i]) {
        const float factor = std::exp(max_[i] - new_max);
        float* o = output_ + i * padded_;
        for (int64_t h = 0; h < padded_; h += W) store(o + h, load(o + h) * factor);
        sum_[i] *= factor;
        max_[i] = new_max;
      }
      sum_[i] += reduce_add(sum);
    }
  }

  TOKA_INLINE void store_probabilities(int64_t row, int64_t column, F p) {
    if (expands_)
      store(probabilities_ + row * TILE + column, p);
    else
      store(reinterpret_cast<A*>(probabilities_) + row * TILE + column, p);
  }

  void direct_tile(int64_t begin, int64_t end) {
    const CacheShape& shape = call_.cache;
    const int64_t page = shape.page_size, steps = (head_dim_ + PACK - 1) / PACK;
    for (int64_t t = begin; t < end;) {
      const int64_t offset = t % page, count = std::min(page - offset, end - t);
      score(reinterpret_cast<const A*>(queries_),
            keys_of(blocks_, item_->kv_head, t) + offset * PACK, page, steps, (count + W - 1) / W,
            scores_ + (t - begin), reinterpret_cast<const char*>(values_of(t)));
      t += count;
    }
    softmax(begin, end);
    for (int64_t i = 0; i < rows_; i += MR) {
      const int m = int(std::min<int64_t>(MR, rows_ - i));
      with_rows(m, [&](auto constant) {
        constexpr int M = decltype(constant)::value;
        direct_output<M, output_vectors(M)>(i, begin, end, 0);
      });
    }
  }

  // output[i .. i+M) += P V for vectors [v, ...) of V, N at a time, then fewer.
  template <int M, int N>
  TOKA_INLINE void direct_output(int64_t i, int64_t begin, int64_t end, int64_t v) {
    const CacheShape& shape = call_.cache;
    const int64_t page = shape.page_size, vectors = padded_ / W;
    const A* p = reinterpret_cast<const A*>(probabilities_) + i * TILE;
    for (; v + N <= vectors; v += N) {
      F acc[M][N];
      for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) acc[r][n] = load(output_ + (i + r) * padded_ + (v + n) * W);
      for (int64_t t = begin; t < end;) {
        const int64_t offset = t % page, count = std::min(page - offset, end - t);
        const T* values = values_of(t) + (offset / PACK * padded_ + v * W) * PACK;
        const char* ahead = i == 0 ? keys_ahead((t - begin) / page) : nullptr;
        if (ahead != nullptr)
          multiply(p + (t - begin), TILE, values, padded_, int(count / PACK), acc,
                   Fetch<N * W * 4>{ahead + v * W * 4 * (page / PACK)});
        else
          multiply(p + (t - begin), TILE, values, padded_, int(count / PACK), acc);
        if (PACK == 2 && count % 2 == 1) {
          // The pair's second token is not there yet: whatever the cache holds must not count.
          const T* last = values + count / PACK * padded_ * PACK;
          T* pair = reinterpret_cast<T*>(last_pair_);
          for (int n = 0; n < N * W; n++) {
            pair[2 * n] = last[2 * n];
            assign(&pair[2 * n + 1], 0.0f);
          }
          multiply(p + (t - begin) + count - 1, TILE, pair, padded_, 1, acc);
        }
        t += count;
      }
      for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) store(output_ + (i + r) * padded_ + (v + n) * W, acc[r][n]);
    }
    if constexpr (N > 1) {
      if (v < vectors) direct_output<M, N / 2>(i, begin, end, v);
    }
  }

  void expanded_tile(int64_t begin, int64_t end) {
    gather_tile<T>(call_, blocks_, item_->kv_head, begin, end - begin, k_tile_, TILE, v_tile_);
    score(queries_, k_tile_, TILE, head_dim_, (end - begin + W - 1) / W, scores_, nullptr);
    softmax(begin, end);
    for (int64_t i = 0; i < rows_; i += MR) {
      const int m = int(std::min<int64_t>(MR, rows_ - i));
      with_rows(m, [&](auto constant) {
        constexpr int M = decltype(constant)::value;
        expanded_output<M, NV>(i, end - begin, 0);
      });
    }
  }

  template <int M, int N>
  TOKA_INLINE void expanded_output(int64_t i, int64_t count, int64_t v) {
    const int64_t vectors = padded_ / W;
    for (; v + N <= vectors; v += N) {
      F acc[M][N];
      for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) acc[r][n] = load(output_ + (i + r) * padded_ + (v + n) * W);
      const float *p = probabilities_ + i * TILE, *values = v_tile_ + v * W;
      multiply(p, TILE, values, padded_, int(count), acc);
      for (int r = 0; r < M; r++)
        for (int n = 0; n < N; n++) store(output_ + (i + r) * padded_ + (v + n) * W, acc[r][n]);
    }
    if constexpr (N > 1) {
      if (v < vectors) expanded_output<M, N / 2>(i, count, v);
    }
  }

  void store_output() {
    for (int64_t i = 0; i < rows_; i++) {
      const int64_t head = item_->kv_head * group_ + i % group_;
      float sum = sum_[i];
      float factor = 1.0f;
      if (call_.sinks != nullptr) {
        const float top = std::max(max_[i], call_.sinks[head]);
        factor = std::exp(max_[i] - top);
        sum = sum * factor + std::exp(call_.sinks[head] - top);
      }
      T* out = static_cast<T*>(call_.out) +
               ((item_->token0 + i / group_) * call_.num_heads + head) * head_dim_;
      write_row(output_ + i * padded_, factor / sum, head_dim_, out);
    }
  }

  void store_partials(float* partials) const {
    for (int64_t i = 0; i < rows_; i++) {
      float* p = partials + (item_->partial_row + i) * partial_stride(padded_);
      std::memcpy(p, output_ + i * padded_, padded_ * sizeof(float));
      p[padded_] = max_[i];
      p[padded_ + 1] = sum_[i];
    }
  }

  const AttentionCall& call_;
  const int64_t group_, head_dim_, q_stride_, padded_;
  const Item* item_ = nullptr;
  const int32_t* blocks_ = nullptr;
  struct {
    const Item* item;
    int64_t begin;
  } ahead_ = {nullptr, 0};  // where the next tile's keys begin, if there is one
  int64_t rows_ = 0;
  bool expands_ = false;
  float *scores_, *probabilities_, *output_, *queries_, *last_pair_, *max_, *sum_;
  float *k_tile_, *v_tile_;
  static thread_local Scratch scratch_;
};

template <class T>
thread_local Scratch Worker<T>::scratch_;

template <class T>
void run(Team& team, const AttentionCall& call, float* partials) {
  team.pieces(call.num_tokens, 4, [&](int64_t first, int64_t last) {
    thread_local Scratch head;
    T* rotated = head.get<T>(call.cache.padded_head_dim());
    for (int64_t token = first; token < last; token++) append(call, token, rotated);
  });
  team.barrier();
  Worker<T> worker(call);
  team.each(call.num_items, call.num_items >= ITEMS_AHEAD * team.size(),
            [&](int64_t i, int64_t next) {
              worker.run(call.items[i], next < 0 ? nullptr : &call.items[next], partials);
            });
  if (call.num_merges == 0) return;
  team.barrier();
  team.pieces(call.num_merges, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) merge_parts<T>(call, call.merges[i], partials);
  });
}

}  // namespace

size_t partial_floats(const AttentionCall& call) {
  return size_t(call.partial_rows * partial_stride(call.cache.padded_head_dim()));
}

void attention(Team& team, const AttentionCall& call, float* partials) {
  if (call.cache.type == Type::BFloat16)
    run<bf16>(team, call, partials);
  else
    run<float>(team, call, partials);
}

void attention(const AttentionCall& call) {
  thread_local Scratch scratch;
  float* partials = scratch.get<float>(partial_floats(call));
  parallel_region(call.threads, [&](Team& team) { attention(team, call, partials); });
}

}  // namespace toka
