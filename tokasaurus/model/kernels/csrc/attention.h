// Paged attention: the cache's layout, the plan of a step, and one layer's run.
//
// Cache of one layer, per block and KV head, T being bf16 (PACK 2) or float (PACK 1):
//   K [ceil(H / PACK)][page_size][PACK]           the B operand of Q K^T
//   V [ceil(page_size / PACK)][padded H][PACK]    the B operand of P V; padded H: multiple of 16
#pragma once

#include <cstdint>
#include <vector>

#include "linear.h"

namespace toka {

struct CacheShape {
  int64_t num_kv_heads, head_dim, page_size;
  Type type;

  int64_t pack() const { return type == Type::BFloat16 ? 2 : 1; }
  int64_t padded_head_dim() const { return (head_dim + 15) / 16 * 16; }
  int64_t k_head_size() const { return (head_dim + pack() - 1) / pack() * page_size * pack(); }
  int64_t v_head_size() const {
    return (page_size + pack() - 1) / pack() * padded_head_dim() * pack();
  }
  int64_t k_block_size() const { return num_kv_heads * k_head_size(); }
  int64_t v_block_size() const { return num_kv_heads * v_head_size(); }
};

// Query tokens [token0, token0 + num_tokens) of some KV heads against keys [kv_begin, kv_end).
struct Item {
  int32_t token0, num_tokens, kv_head, num_kv_heads, kv_begin, kv_end;
  int32_t position0;      // of token0 in its sequence; -1: every query sees every key of the range
  int32_t block_offset;   // the row's first entry in block_ids
  int32_t partial_row;    // first of its rows' partial results; -1: the output is final
};

// Partial results of one token and KV head: `count` entries of `parts` from `first`.
struct Merge {
  int32_t token, kv_head, first, count;
};

struct PlanRequest {
  const int32_t *query_lens, *kv_lens, *block_indptr;
  int64_t num_rows, num_prefill_rows;
  const int32_t* groups;  // [num_groups][3]: first decode row, rows, blocks
  int64_t num_groups;
  CacheShape cache;
  int64_t group_size;
  int64_t window;  // 0: none
  int threads;
};

struct Plan {
  std::vector<Item> items;    // most work first
  std::vector<Merge> merges;
  std::vector<int32_t> parts;  // rows of partial results
  int64_t partial_rows = 0;
  // Every row has one token: the items that reach it may append it, before they read it.
  bool items_append = true;
};

Plan plan_attention(const PlanRequest& request);

// What happens to a step's q and k before they are used; where they lie they stay as they are.
struct Rotary {
  const void* table = nullptr;  // [positions, dim]: cosines, then sines, in the cache's type
  const int64_t* positions = nullptr;
  int64_t dim = 0;  // elements of a head that are rotated
  const float *q_norm = nullptr, *k_norm = nullptr;  // [H]: RMS norm of each head first; or null
  float norm_eps = 0;
};

struct AttentionCall {
  const void* q;      // [T, heads, H] in the cache's type
  const void *k, *v;  // [T, KV heads, H]
  int64_t q_stride, k_stride, v_stride;  // elements between tokens; heads are contiguous
  void* out;                             // [T, heads, H], contiguous
  int64_t num_tokens, num_heads;
  const int64_t* slot_mapping;
  const int32_t* block_ids;
  void *k_cache, *v_cache;
  CacheShape cache;
  Rotary rotary;
  float scale, softcap;  // softcap 0: none
  int64_t window;        // 0: none
  const float* sinks;    // [heads] or null
  const Item* items;
  int64_t num_items;
  const Merge* merges;
  int64_t num_merges;
  const int32_t* parts;
  int64_t partial_rows;
  bool items_append;  // see Plan
  int threads;
};

// Writes k and v to their slots, then attends.
void attention(const AttentionCall& call);

// The same as a part of a region, all of whose threads call it. Returns where the calling thread
// finds the outputs: in `out`, where they are whole after a barrier that follows, or, if that holds
// for all threads, already in memory of its own. `partials` is theirs together, of as many floats
// as the call needs.
const void* attention(Team& team, const AttentionCall& call, float* partials);
size_t partial_floats(const AttentionCall& call);

}  // namespace toka
