// The decoder's layers, one after the other, over buffers that are kept between calls.
#include "stack.h"

#include "norm.h"
#include "parallel.h"

namespace toka {
namespace {

struct Buffers {
  char *qkv, *attended, *gated;
};

// Fields that all of the call's linear layers share.
LinearCall base_linear(const StackCall& call) {
  LinearCall linear{};
  linear.num_rows = call.num_tokens;
  linear.type = linear.out_type = call.cache.type;
  linear.format = call.format;
  linear.norm_eps = call.norm_eps;
  linear.threads = call.threads;
  return linear;
}

void product(LinearCall linear_call, const void* x, int64_t in_features, const void* packed,
             const float* bias, void* out, int64_t out_features) {
  linear_call.x = x;
  linear_call.x_stride = linear_call.in_features = in_features;
  linear_call.packed = packed;
  linear_call.bias = bias;
  linear_call.out = out;
  linear_call.out_stride = linear_call.out_features = out_features;
  linear(linear_call);
}

void attend(const StackCall& call, const StackLayer& layer, const Buffers& buffers,
            int64_t element_size) {
  const CacheShape& cache = call.cache;
  const int64_t q_size = call.num_heads * cache.head_dim;
  const int64_t kv_size = cache.num_kv_heads * cache.head_dim;
  AttentionCall a{};
  a.q = buffers.qkv;
  a.k = buffers.qkv + q_size * element_size;
  a.v = buffers.qkv + (q_size + kv_size) * element_size;
  a.q_stride = a.k_stride = a.v_stride = q_size + 2 * kv_size;
  a.out = buffers.attended;
  a.num_tokens = call.num_tokens;
  a.num_heads = call.num_heads;
  a.slot_mapping = call.slot_mapping;
  a.block_ids = call.block_ids;
  a.k_cache = layer.k_cache;
  a.v_cache = layer.v_cache;
  a.cache = cache;
  a.rotary = call.rotary;
  a.rotary.q_norm = layer.q_norm;
  a.rotary.k_norm = layer.k_norm;
  a.rotary.norm_eps = call.norm_eps;
  a.scale = layer.scale;
  a.softcap = layer.softcap;
  a.window = layer.window;
  a.sinks = layer.sinks;
  a.items = layer.items;
  a.num_items = layer.num_items;
  a.merges = layer.merges;
  a.num_merges = layer.num_merges;
  a.parts = layer.parts;
  a.partial_rows = layer.partial_rows;
  a.threads = call.threads;
  attention(a);
}

template <class T>
void normalize(const StackCall& call) {
  T* hidden = static_cast<T*>(call.hidden);
  const int64_t size = call.hidden_size;
  parallel_pieces(call.num_tokens, 8, call.threads, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++)
      normalize_row(hidden + t * size, size, call.norm_eps, call.final_norm, hidden + t * size);
  });
}

}  // namespace

void run_stack(const StackCall& call) {
  const int64_t element_size = call.cache.type == Type::BFloat16 ? 2 : 4;
  const int64_t T = call.num_tokens, D = call.hidden_size;
  const int64_t q_size = call.num_heads * call.cache.head_dim;
  const int64_t qkv_size = q_size + 2 * call.cache.num_kv_heads * call.cache.head_dim;
  const int64_t row = qkv_size + q_size + call.intermediate_size;
  thread_local Scratch scratch;
  Buffers buffers{};
  buffers.qkv = scratch.get<char>(T * row * element_size);
  buffers.attended = buffers.qkv + T * qkv_size * element_size;
  buffers.gated = buffers.attended + T * q_size * element_size;
  const LinearCall plain = base_linear(call);
  LinearCall residual = plain;
  residual.residual = call.hidden;
  residual.residual_stride = D;
  for (const StackLayer& layer : call.layers) {
    LinearCall normed = plain;
    normed.norm_weight = layer.attention_norm;
    product(normed, call.hidden, D, layer.qkv, layer.qkv_bias, buffers.qkv, qkv_size);
    attend(call, layer, buffers, element_size);
    product(residual, buffers.attended, q_size, layer.out, layer.out_bias, call.hidden, D);
    normed.norm_weight = layer.mlp_norm;
    normed.gated = true;
    product(normed, call.hidden, D, layer.gate_up, layer.gate_up_bias, buffers.gated,
            call.intermediate_size);
    product(residual, buffers.gated, call.intermediate_size, layer.down, layer.down_bias,
            call.hidden, D);
  }
  if (call.final_norm == nullptr) return;  // more layers follow, in another process
  if (call.cache.type == Type::BFloat16)
    normalize<bf16>(call);
  else
    normalize<float>(call);
}

}  // namespace toka
