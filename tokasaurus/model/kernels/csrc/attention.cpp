// One layer's paged attention: append, flash-style items, merge. See attention.h for the layouts.
#include "attention.h"

#include "attention_cache.h"
#include "attention_expanded.h"
#include "attention_merge.h"
#include "attention_rows.h"
#include "attention_streamed.h"
#include "parallel.h"

namespace toka {
namespace {

// With fewer items per thread, one that is taken ahead may keep a thread waiting.
constexpr int64_t ITEMS_AHEAD = 16;

// One thread's work on items.
template <class T>
class Worker {
 public:
  explicit Worker(const AttentionCall& call)
      : call_(call), rows_(call), streamed_(call, rows_), expanded_(call, rows_) {}

  // `next` is what this thread does afterwards, or null: its first keys are fetched meanwhile.
  void run(const Item& item, const Item* next, float* partials) {
    if (expands(item)) {
      rows_.begin(item, true);
      for (int64_t begin = item.kv_begin, end; begin < item.kv_end; begin = end) {
        end = expanded_.end_of_tile(item, begin);
        expanded_.run(item, begin, end);
      }
    } else {
      rows_.begin(item, false);
      for (int64_t begin = item.kv_begin, end; begin < item.kv_end; begin = end) {
        end = streamed_.end_of_tile(item, begin);
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

  const AttentionCall& call_;
  QueryRows<T> rows_;
  StreamedTiles<T> streamed_;
  ExpandedTiles<T> expanded_;
};

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
