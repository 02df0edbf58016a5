// The decoder's layers, one after the other, over buffers that are kept between calls.
#include "stack.h"

#include <algorithm>

#include "norm.h"
#include "parallel.h"

namespace toka {
namespace {

struct Sizes {
  int64_t element, q, kv;

  explicit Sizes(const StackCall& call)
      : element(call.cache.type == Type::BFloat16 ? 2 : 4),
        q(call.num_heads * call.cache.head_dim),
        kv(call.cache.num_kv_heads * call.cache.head_dim) {}
  int64_t qkv() const { return q + 2 * kv; }
};

// The calls that one layer consists of.
class LayerCalls {
 public:
  LayerCalls(const StackCall& call, const StackLayer& layer, const StackBuffers& buffers)
      : call_(call), layer_(layer), buffers_(buffers), size_(call) {}

  LinearCall qkv() const {
    LinearCall linear = normed(layer_.attention_norm);
    linear.packed = layer_.qkv;
    linear.bias = layer_.qkv_bias;
    return to(linear, buffers_.qkv, size_.qkv());
  }

  LinearCall out() const {
    LinearCall linear = added(buffers_.attended, size_.q);
    linear.packed = layer_.out;
    linear.bias = layer_.out_bias;
    return linear;
  }

  LinearCall gate_up() const {
    LinearCall linear = normed(layer_.mlp_norm);
    linear.packed = layer_.gate_up;
    linear.bias = layer_.gate_up_bias;
    linear.gated = true;
    return to(linear, buffers_.gated, call_.intermediate_size);
  }

  LinearCall down() const {
    LinearCall linear = added(buffers_.gated, call_.intermediate_size);
    linear.packed = layer_.down;
    linear.bias = layer_.down_bias;
    return linear;
  }

  AttentionCall attention() const {
    AttentionCall a{};
    a.q = buffers_.qkv;
    a.k = buffers_.qkv + size_.q * size_.element;
    a.v = buffers_.qkv + (size_.q + size_.kv) * size_.element;
    a.q_stride = a.k_stride = a.v_stride = size_.qkv();
    a.out = buffers_.attended;
    a.num_tokens = call_.num_tokens;
    a.num_heads = call_.num_heads;
    a.slot_mapping = call_.slot_mapping;
    a.block_ids = call_.block_ids;
    a.k_cache = layer_.k_cache;
    a.v_cache = layer_.v_cache;
    a.cache = call_.cache;
    a.rotary = call_.rotary;
    a.rotary.q_norm = layer_.q_norm;
    a.rotary.k_norm = layer_.k_norm;
    a.rotary.norm_eps = call_.norm_eps;
    a.scale = layer_.scale;
    a.softcap = layer_.softcap;
    a.window = layer_.window;
    a.sinks = layer_.sinks;
    a.items = layer_.items;
    a.num_items = layer_.num_items;
    a.merges = layer_.merges;
    a.num_merges = layer_.num_merges;
    a.parts = layer_.parts;
    a.partial_rows = layer_.partial_rows;
    a.items_append = layer_.items_append;
    return a;
  }

 private:
  LinearCall of(const void* x, int64_t in_features) const {
    LinearCall linear{};
    linear.x = x;
    linear.x_stride = linear.in_features = in_features;
    linear.num_rows = call_.num_tokens;
    linear.type = linear.out_type = call_.cache.type;
    linear.format = call_.format;
    return linear;
  }

  LinearCall normed(const float* weight) const {
    LinearCall linear = of(call_.hidden, call_.hidden_size);
    linear.norm_weight = weight;
    linear.norm_eps = call_.norm_eps;
    return linear;
  }

  // To the hidden states, which it leaves its sum in.
  LinearCall added(const void* x, int64_t in_features) const {
    LinearCall linear = of(x, in_features);
    linear.residual = call_.hidden;
    linear.residual_stride = call_.hidden_size;
    return to(linear, call_.hidden, call_.hidden_size);
  }

  static LinearCall to(LinearCall linear, void* out, int64_t out_features) {
    linear.out = out;
    linear.out_stride = linear.out_features = out_features;
    return linear;
  }

  const StackCall& call_;
  const StackLayer& layer_;
  const StackBuffers& buffers_;
  const Sizes size_;
};

template <class T>
void normalize(Team& team, const StackCall& call) {
  T* hidden = static_cast<T*>(call.hidden);
  const int64_t size = call.hidden_size;
  team.pieces(call.num_tokens, 8, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; t++)
      normalize_row(hidden + t * size, size, call.norm_eps, call.final_norm, hidden + t * size);
  });
  team.barrier();
}

// One of the region's linear layers; its outputs are whole afterwards.
void run_linear(Team& team, const LinearCall& call, const StackBuffers& buffers,
                const Ahead& next) {
  linear(team, call, buffers.room);
  team.read_ahead(next);
  team.barrier();
}

}  // namespace

StackBuffers StackMemory::buffers(const StackCall& call, size_t room) {
  const Sizes size(call);
  const int64_t T = call.num_tokens, row = size.qkv() + size.q + call.intermediate_size;
  StackBuffers buffers{};
  buffers.qkv = activations_.get<char>(T * row * size.element);
  buffers.attended = buffers.qkv + T * size.qkv() * size.element;
  buffers.gated = buffers.attended + T * size.q * size.element;
  const LayerCalls first(call, call.layers.front(), buffers);  // all are of the same shapes
  for (const LinearCall& linear : {first.qkv(), first.out(), first.gate_up(), first.down()})
    room = std::max(room, linear_room(linear));
  size_t partials = 0;
  for (const StackLayer& layer : call.layers)
    partials = std::max(partials, partial_floats(LayerCalls(call, layer, buffers).attention()));
  buffers.room = room_.get<char>(room);
  buffers.partials = partials_.get<float>(partials);
  return buffers;
}

Ahead stack_ahead(const Team& team, const StackCall& call) {
  return linear_ahead(team, LayerCalls(call, call.layers.front(), {}).qkv());
}

void run_stack(Team& team, const StackCall& call, const StackBuffers& buffers, const Ahead& next) {
  const size_t num_layers = call.layers.size();
  for (size_t i = 0; i < num_layers; i++) {
    const LayerCalls layer(call, call.layers[i], buffers);
    LinearCall out = layer.out();
    const LinearCall gate_up = layer.gate_up(), down = layer.down();
    run_linear(team, layer.qkv(), buffers, linear_ahead(team, out));
    out.x = attention(team, layer.attention(), buffers.partials);
    if (out.x == buffers.attended) team.barrier();
    run_linear(team, out, buffers, linear_ahead(team, gate_up));
    run_linear(team, gate_up, buffers, linear_ahead(team, down));
    const bool is_last = i + 1 == num_layers;
    run_linear(team, down, buffers,
               is_last ? next
                       : linear_ahead(team, LayerCalls(call, call.layers[i + 1], buffers).qkv()));
  }
  if (call.final_norm == nullptr) return;
  if (call.cache.type == Type::BFloat16)
    normalize<bf16>(team, call);
  else
    normalize<float>(team, call);
}

void run_stack(const StackCall& call) {
  thread_local StackMemory memory;
  const StackBuffers buffers = memory.buffers(call, 0);
  parallel_region(call.threads, [&](Team& team) { run_stack(team, call, buffers, {}); });
}

}  // namespace toka
