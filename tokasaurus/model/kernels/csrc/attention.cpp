// One layer's paged attention: append, flash-style items, merge. See attention.h for the layouts.
#include "attention.h"

#include <algorithm>
#include <cstring>

#include "attention_cache.h"
#include "attention_expanded.h"
#include "attention_merge.h"
#include "attention_rows.h"
#include "attention_streamed.h"
#include "parallel.h"

namespace toka {
namespace {

// One thread's work on items.
template <class T>
class Worker {
 public:
  explicit Worker(const AttentionCall& call)
      : call_(call), rows_(call), streamed_(call, rows_), expanded_(call, rows_) {}

  // Brings the first keys into the cache.
  void fetch(const Item& item) const {
    if (!expands(item)) streamed_.fetch(item);
  }

  // `next` is what this thread does afterwards, or null: its first keys are fetched meanwhile.
  void run(const Item& item, const Item* next, float* partials) {
    if (expands(item)) {
      append_newest(item);
      rows_.begin(item, true);
      for (int64_t begin = item.kv_begin, end; begin < item.kv_end; begin = end) {
        end = expanded_.end_of_tile(item, begin);
        expanded_.run(item, begin, end);
      }
    } else {
      rows_.begin(item, false);
      for (int64_t begin = item.kv_begin, end; begin < item.kv_end; begin = end) {
        end = streamed_.end_of_tile(item, begin);
        if (end == item.kv_end) append_newest(item);  // their lines are on their way by now
        if (end < item.kv_end)
          streamed_.run(item, begin, end, &item, end);
        else
          streamed_.run(item, begin, end, next, next == nullptr ? 0 : next->kv_begin);
      }
    }
    rows_.finish(partials);
  }

 private:
  bool expands(const Item& item) const {
    const int64_t rows = item.num_tokens * (call_.num_heads / call_.cache.num_kv_heads);
    return !StreamedTiles<T>::fits(call_.cache) ||
           (Operand<T>::PACK == 2 && !HAS_BF16_DOT && rows > 2 * MR);
  }

  // Where items append: what this one has of its token's own key and value. No other item reads it.
  void append_newest(const Item& item) const {
    if (!call_.items_append || item.position0 < 0 || item.kv_end != item.position0 + 1) return;
    thread_local Scratch scratch;
    T* rotated = scratch.get<T>(call_.cache.padded_head_dim());
    for (int64_t head = 0; head < item.num_kv_heads; head++)
      append(call_, item.token0, item.kv_head + head, rotated);
  }

  const AttentionCall& call_;
  QueryRows<T> rows_;
  StreamedTiles<T> streamed_;
  ExpandedTiles<T> expanded_;
};

// Keys and values of the step into the cache: heads of few tokens go to different threads.
template <class T>
void append_all(Team& team, const AttentionCall& call) {
  const int64_t heads = call.cache.num_kv_heads, count = call.num_tokens * heads;
  const int64_t grain = std::clamp<int64_t>(count / (4 * team.size()), 1, 4 * heads);
  T *k_cache = static_cast<T*>(call.k_cache), *v_cache = static_cast<T*>(call.v_cache);
  team.pieces(count, grain, [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    T* rotated = scratch.get<T>(call.cache.padded_head_dim());
    for (int64_t i = first; i < last; i++)
      fetch_slot(call.cache, k_cache, v_cache, call.slot_mapping[i / heads], i % heads);
    for (int64_t i = first; i < last; i++) append(call, i / heads, i % heads, rotated);
  });
}

template <class T>
const void* run(Team& team, const AttentionCall& call, float* partials) {
  Worker<T> worker(call);
  if (team.rank() < call.num_items) worker.fetch(call.items[team.rank()]);
  if (!call.items_append) {
    append_all<T>(team, call);
    team.barrier();
  }
  const auto item = [&](int owner, int64_t step) {
    const int64_t i = owner + step * team.size();
    return i < call.num_items ? &call.items[i] : nullptr;
  };
  team.shares([&](int owner) { return (call.num_items - owner + team.size() - 1) / team.size(); },
              [&](int owner, int64_t step) {
                worker.run(*item(owner, step), item(owner, step + 1), partials);
              });
  if (call.num_merges == 0) return call.out;
  team.barrier();
  // Each thread merges a lone row for itself: it takes less time than a barrier.
  if (call.num_tokens == 1 && call.num_merges == call.cache.num_kv_heads) {
    thread_local Scratch scratch;
    AttentionCall own = call;
    own.out = scratch.get<T>(call.num_heads * call.cache.head_dim);
    for (int64_t i = 0; i < call.num_merges; i++) merge_parts<T>(own, call.merges[i], partials);
    return own.out;
  }
  team.pieces(call.num_merges, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) merge_parts<T>(call, call.merges[i], partials);
  });
  return call.out;
}

}  // namespace

size_t partial_floats(const AttentionCall& call) {
  return size_t(call.partial_rows * partial_stride(call.cache.padded_head_dim()));
}

const void* attention(Team& team, const AttentionCall& call, float* partials) {
  return call.cache.type == Type::BFloat16 ? run<bf16>(team, call, partials)
                                           : run<float>(team, call, partials);
}

void attention(const AttentionCall& call) {
  thread_local Scratch scratch;
  float* partials = scratch.get<float>(partial_floats(call));
  const size_t bytes = call.num_tokens * call.num_heads * call.cache.head_dim *
                       (call.cache.type == Type::BFloat16 ? sizeof(bf16) : sizeof(float));
  parallel_region(call.threads, [&](Team& team) {
    const void* out = attention(team, call, partials);
    if (out != call.out && team.rank() == 0) std::memcpy(call.out, out, bytes);
  });
}

}  // namespace toka
