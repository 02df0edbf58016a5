// The query rows of one item: their operands, running softmax and outputs; memory of one thread.
//
// Rows are ordered by KV head, token, and query head of the group. Maxima are of scores in powers
// of two: scores times log2(e).
#pragma once

#include <algorithm>

#include "attention.h"
#include "attention_merge.h"
#include "attention_softmax.h"
#include "micro.h"
#include "parallel.h"
#include "rotary.h"

namespace toka {

// Keys of a tile at most.
constexpr int64_t TILE = 64;
// How far, in powers of two, scores may be above what they are taken relative to: sums stay exact,
// as they are floats, and outputs seldom need to be rescaled.
constexpr float HEADROOM = 8.0f;

// Whether every token of the item sees all of keys [begin, end).
inline bool sees_all(const AttentionCall& call, const Item& item, int64_t begin, int64_t end) {
  if (item.position0 < 0) return true;
  const int64_t last = item.position0 + item.num_tokens - 1;
  return end <= item.position0 + 1 && (call.window == 0 || last - call.window < begin);
}

template <class T>
class QueryRows {
 public:
  typedef typename Operand<T>::A A;

  explicit QueryRows(const AttentionCall& call)
      : call_(call),
        group_(call.num_heads / call.cache.num_kv_heads),
        head_dim_(call.cache.head_dim),
        q_stride_((call.cache.head_dim + 1) / 2 * 2),
        padded_(call.cache.padded_head_dim()) {}

  // Takes up an item. `as_floats`: queries and probabilities are floats, not operands of T.
  void begin(const Item& item, bool as_floats) {
    item_ = &item;
    as_floats_ = as_floats;
    per_head_ = item.num_tokens * group_;
    count_ = item.num_kv_heads * per_head_;
    reserve();
    if (as_floats)
      convert_queries(queries_);
    else
      convert_queries(reinterpret_cast<A*>(queries_));
    for (int64_t i = 0; i < count_; i++) max_[i] = NEG_INF;
    std::memset(sums_, 0, count_ * W * sizeof(float));
    std::memset(output_, 0, count_ * padded_ * sizeof(float));
  }

  int64_t per_head() const { return per_head_; }
  int64_t q_stride() const { return q_stride_; }
  int64_t padded() const { return padded_; }

  // Of row i on; P and Q are A, or float where the item was taken up with `as_floats`.
  template <class Q>
  const Q* queries(int64_t i) const {
    return reinterpret_cast<const Q*>(queries_) + i * q_stride_;
  }
  template <class P>
  const P* probabilities(int64_t i) const {
    return reinterpret_cast<const P*>(probabilities_) + i * TILE;
  }
  float* scores(int64_t i) { return scores_ + i * TILE; }
  float* output(int64_t i) { return output_ + i * padded_; }

  // Scores of keys [begin, end) of rows [first, last) become probabilities; outputs so far are
  // rescaled where a score is far above all that came before.
  void softmax(int64_t first, int64_t last, int64_t begin, int64_t end) {
    if (as_floats_)
      softmax_into(probabilities_, first, last, begin, end);
    else
      softmax_into(reinterpret_cast<A*>(probabilities_), first, last, begin, end);
  }

  // The item is done: its outputs, or what it adds to them.
  void finish(float* partials) {
    if (item_->partial_row >= 0)
      store_partials(partials);
    else
      store_output();
  }

 private:
  void reserve() {
    float* p = scratch_.template get<float>(count_ * (2 * TILE + q_stride_ + padded_ + W + 1) +
                                            padded_ + 7 * 16);
    auto take = [&p](int64_t count) {
      float* start = p;
      p += (count + 15) / 16 * 16;
      return start;
    };
    scores_ = take(count_ * TILE);
    probabilities_ = take(count_ * TILE);
    output_ = take(count_ * padded_);
    queries_ = take(count_ * q_stride_);
    sums_ = take(count_ * W);
    max_ = take(count_);
    rotated_ = reinterpret_cast<T*>(take(padded_));
  }

  int64_t head_of(int64_t i) const {
    return (item_->kv_head + i / per_head_) * group_ + i % group_;
  }
  int64_t token_of(int64_t i) const { return item_->token0 + i % per_head_ / group_; }

  template <class Q>
  void convert_queries(Q* out) {
    for (int64_t i = 0; i < count_; i++) {
      const T* q = static_cast<const T*>(call_.q) + token_of(i) * call_.q_stride +
                   head_of(i) * head_dim_;
      if (call_.rotary.table != nullptr) {
        rotate_head(call_.rotary, call_.rotary.q_norm, token_of(i), head_dim_, q, rotated_);
        q = rotated_;
      }
      Q* row = out + i * q_stride_;
      int64_t h = 0;
      for (; h + W <= head_dim_; h += W) store(row + h, load(q + h));
      for (; h < head_dim_; h++) assign(row + h, to_float(q[h]));
      for (; h < q_stride_; h++) assign(row + h, 0.0f);
    }
  }

  template <class P>
  void softmax_into(P* probabilities, int64_t first, int64_t last, int64_t begin, int64_t end) {
    if (end - begin == TILE && sees_all(call_, *item_, begin, end) && call_.softcap == 0) {
      const float scale = call_.scale * LOG2_E;
      for (int64_t i = first; i < last; i++) softmax_of(i, TILE, scale, probabilities + i * TILE);
      return;
    }
    for (int64_t i = first; i < last; i++) {
      int64_t visible_end = end, visible_begin = begin;
      if (item_->position0 >= 0) {
        const int64_t position = item_->position0 + i % per_head_ / group_;
        visible_end = std::min(end, position + 1);
        if (call_.window > 0) visible_begin = std::max(begin, position - call_.window + 1);
      }
      softmax_masked(i, visible_begin - begin, visible_end - begin, end - begin,
                     probabilities + i * TILE);
    }
  }

  // Row i, which sees columns [visible_begin, visible_end) of the tile's `count`.
  template <class P>
  void softmax_masked(int64_t i, int64_t visible_begin, int64_t visible_end, int64_t count,
                      P* probabilities) {
    const int64_t columns = (count + W - 1) / W * W;
    if (visible_begin >= visible_end) {
      for (int64_t c = 0; c < columns; c += W) store(probabilities + c, F{});
      return;
    }
    float* s = scores_ + i * TILE;
    for (int64_t c = 0; c < visible_begin; c++) s[c] = NEG_INF;
    for (int64_t c = visible_end; c < columns; c++) s[c] = NEG_INF;
    float scale = call_.scale * LOG2_E;
    if (call_.softcap > 0) {
      cap_scores(s, columns, call_.scale / call_.softcap, call_.softcap);
      scale = LOG2_E;
    }
    softmax_of(i, columns, scale, probabilities);
  }

  template <class P>
  TOKA_INLINE void softmax_of(int64_t i, int64_t columns, float scale, P* probabilities) {
    const float* s = scores_ + i * TILE;
    F largest = splat(NEG_INF);
    for (int64_t c = 0; c < columns; c += W) largest = vmax(largest, load(s + c) * scale);
    if (__builtin_expect(any_above(largest, max_[i] + HEADROOM), 0))
      rescale(i, reduce_max(largest));
    const float top = max_[i];
    F sum = load(sums_ + i * W);
    for (int64_t c = 0; c < columns; c += W) {
      const F p = exp2_of_difference(load(s + c) * scale, top);
      sum += p;
      store(probabilities + c, p);
    }
    store(sums_ + i * W, sum);
  }

  __attribute__((noinline)) void rescale(int64_t i, float new_max) {
    if (max_[i] != NEG_INF) {
      const float factor = std::exp2(max_[i] - new_max);
      float* o = output_ + i * padded_;
      for (int64_t h = 0; h < padded_; h += W) store(o + h, load(o + h) * factor);
      store(sums_ + i * W, load(sums_ + i * W) * factor);
    }
    max_[i] = new_max;
  }

  void store_output() {
    for (int64_t i = 0; i < count_; i++) {
      const int64_t head = head_of(i);
      float sum = reduce_add(load(sums_ + i * W)), factor = 1.0f;
      if (call_.sinks != nullptr) {
        const float sink = call_.sinks[head] * LOG2_E;
        const float top = std::max(max_[i], sink);
        factor = std::exp2(max_[i] - top);
        sum = sum * factor + std::exp2(sink - top);
      }
      T* out = static_cast<T*>(call_.out) + (token_of(i) * call_.num_heads + head) * head_dim_;
      write_row(output_ + i * padded_, factor / sum, head_dim_, out);
    }
  }

  void store_partials(float* partials) const {
    for (int64_t i = 0; i < count_; i++) {
      float* p = partials + (item_->partial_row + i) * partial_stride(padded_);
      std::memcpy(p, output_ + i * padded_, padded_ * sizeof(float));
      p[padded_] = max_[i];
      p[padded_ + 1] = reduce_add(load(sums_ + i * W));
    }
  }

  const AttentionCall& call_;
  const int64_t group_, head_dim_, q_stride_, padded_;
  const Item* item_ = nullptr;
  bool as_floats_ = false;
  int64_t per_head_ = 0, count_ = 0;
  // [count][TILE] twice, [count][padded], [count][q_stride], [count][W], [count]
  float *scores_, *probabilities_, *output_, *queries_, *sums_, *max_;
  T* rotated_;  // [H]
  static thread_local Scratch scratch_;
};

template <class T>
thread_local Scratch QueryRows<T>::scratch_;

}  // namespace toka
