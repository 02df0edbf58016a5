// All layers of a decoder in one call: RMS norm, attention, RMS norm, gated MLP, with residuals.
//
// One parallel region per step leaves nothing between the kernels of a layer: no allocation, no
// dispatch, and a thread that waits for another reads ahead of the next layer's weights.
#pragma once

#include <vector>

#include "attention.h"
#include "linear.h"
#include "scratch.h"

namespace toka {

struct StackLayer {
  const void *qkv, *out, *gate_up, *down;  // packed
  const float *qkv_bias, *out_bias, *gate_up_bias, *down_bias;  // or null
  const float *attention_norm, *mlp_norm;
  const float *q_norm, *k_norm, *sinks;  // or null
  void *k_cache, *v_cache;
  float scale, softcap;
  int64_t window;
  const Item* items;
  int64_t num_items;
  const Merge* merges;
  int64_t num_merges;
  const int32_t* parts;
  int64_t partial_rows;
  bool items_append;
};

struct StackCall {
  // [T, D]: in: embeddings; out: the sum of all layers, normalised if there is a norm
  void* hidden;
  int64_t num_tokens, hidden_size, intermediate_size, num_heads;
  const float* final_norm;  // or null
  float norm_eps;
  Format format;  // of all linear layers
  CacheShape cache;
  Rotary rotary;
  const int64_t* slot_mapping;
  const int32_t* block_ids;
  std::vector<StackLayer> layers;
  int threads;
};

// What the layers of a step leave for one another.
struct StackBuffers {
  char *qkv, *attended, *gated;
  void* room;       // of the linear layers
  float* partials;  // of attention
};

class StackMemory {
 public:
  // Of the calling thread's step; `room` is what other linear layers of the region need.
  StackBuffers buffers(const StackCall& call, size_t room);

 private:
  Scratch activations_, room_, partials_;
};

// What a thread of a region reads first.
Ahead stack_ahead(const Team& team, const StackCall& call);
// All threads of a region call it; `hidden` is whole afterwards. `next` is what they read then.
void run_stack(Team& team, const StackCall& call, const StackBuffers& buffers, const Ahead& next);
// In a region of its own.
void run_stack(const StackCall& call);

}  // namespace toka
