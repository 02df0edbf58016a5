// The decoder stack as a torch operator: lists of tensors in, one StackCall out. Part of
// binding.cpp.
#pragma once

#include <torch/library.h>

#include "binding_checks.h"
#include "stack.h"

namespace toka {
namespace {

// Tensors per layer in `weights`, in this order; an empty tensor stands for an absent one.
enum Weight {
  QKV, OUT, GATE_UP, DOWN,
  QKV_BIAS, OUT_BIAS, GATE_UP_BIAS, DOWN_BIAS,
  ATTENTION_NORM, MLP_NORM, Q_NORM, K_NORM, SINKS,
  NUM_WEIGHTS
};

const float* floats(const at::Tensor& tensor, int64_t count, bool optional) {
  if (optional && tensor.numel() == 0) return nullptr;
  check_contiguous(tensor, at::kFloat, "norms, biases and sinks");
  TORCH_CHECK(tensor.numel() == count, "a norm, a bias or sinks have ", tensor.numel(),
              " elements instead of ", count);
  return tensor.const_data_ptr<float>();
}

struct Sizes {
  int64_t hidden, intermediate, qkv, q;
};

void set_weights(StackLayer& layer, const at::Tensor* w, const Sizes& size, int64_t num_heads,
                 int64_t head_dim, Type type, Format format) {
  const auto packed = [&](Weight which, int64_t n, int64_t k, bool gated) {
    check_packed(w[which], n, k, gated, type, format);
    return w[which].const_data_ptr();
  };
  layer.qkv = packed(QKV, size.qkv, size.hidden, false);
  layer.out = packed(OUT, size.hidden, size.q, false);
  layer.gate_up = packed(GATE_UP, size.intermediate, size.hidden, true);
  layer.down = packed(DOWN, size.hidden, size.intermediate, false);
  layer.qkv_bias = floats(w[QKV_BIAS], size.qkv, true);
  layer.out_bias = floats(w[OUT_BIAS], size.hidden, true);
  layer.gate_up_bias = floats(w[GATE_UP_BIAS], 2 * size.intermediate, true);
  layer.down_bias = floats(w[DOWN_BIAS], size.hidden, true);
  layer.attention_norm = floats(w[ATTENTION_NORM], size.hidden, false);
  layer.mlp_norm = floats(w[MLP_NORM], size.hidden, false);
  layer.q_norm = floats(w[Q_NORM], head_dim, true);
  layer.k_norm = floats(w[K_NORM], head_dim, true);
  layer.sinks = floats(w[SINKS], num_heads, true);
}

void set_plan(StackLayer& layer, const at::Tensor* plan, int64_t partial_rows) {
  for (int i = 0; i < 3; i++) check_contiguous(plan[i], at::kInt, "the plan's arrays");
  layer.items = reinterpret_cast<const Item*>(plan[0].const_data_ptr<int32_t>());
  layer.num_items = plan[0].size(0);
  layer.merges = reinterpret_cast<const Merge*>(plan[1].const_data_ptr<int32_t>());
  layer.num_merges = plan[1].size(0);
  layer.parts = plan[2].const_data_ptr<int32_t>();
  layer.partial_rows = partial_rows;
}

// What the layers are, whatever the step: lists are over all layers.
struct StackModel {
  at::TensorList weights, caches;  // NUM_WEIGHTS and two per layer
  at::ArrayRef<double> scales, softcaps;
  at::IntArrayRef windows;
  const at::Tensor &rotary_table, &final_norm;
  double norm_eps;
  int64_t hidden_size, intermediate_size, num_heads, num_kv_heads, head_dim, page_size;
  int64_t kind, group_size;  // a Format of linear.h
};

StackCall stack_of(const StackModel& model) {
  const size_t num_layers = model.windows.size();
  TORCH_CHECK(num_layers > 0 && model.weights.size() == num_layers * NUM_WEIGHTS &&
                  model.caches.size() == 2 * num_layers && model.scales.size() == num_layers &&
                  model.softcaps.size() == num_layers,
              "the stack's lists must be of its number of layers");
  const at::Tensor& table = model.rotary_table;
  const Type type = type_of(table, "the rotary table");
  check_contiguous(table, table.scalar_type(), "the rotary table");
  StackCall call{};
  call.hidden_size = model.hidden_size;
  call.intermediate_size = model.intermediate_size;
  call.num_heads = model.num_heads;
  call.final_norm = floats(model.final_norm, call.hidden_size, true);
  call.norm_eps = float(model.norm_eps);
  call.cache = {model.num_kv_heads, model.head_dim, model.page_size, type};
  call.format = format_of(model.kind, model.group_size);
  call.rotary.table = table.const_data_ptr();
  call.rotary.dim = table.size(1);
  const int64_t q_size = model.num_heads * model.head_dim;
  const Sizes size{call.hidden_size, call.intermediate_size,
                   q_size + 2 * model.num_kv_heads * model.head_dim, q_size};
  call.layers.resize(num_layers);
  for (size_t i = 0; i < num_layers; i++) {
    StackLayer& layer = call.layers[i];
    set_weights(layer, &model.weights[i * NUM_WEIGHTS], size, model.num_heads, model.head_dim,
                type, call.format);
    layer.k_cache = model.caches[2 * i].mutable_data_ptr();
    layer.v_cache = model.caches[2 * i + 1].mutable_data_ptr();
    layer.scale = float(model.scales[i]);
    layer.softcap = float(model.softcaps[i]);
    layer.window = model.windows[i];
  }
  return call;
}

void decoder_stack_op(at::Tensor& hidden, const at::Tensor& positions, const at::Tensor& table,
                      const at::Tensor& slot_mapping, const at::Tensor& block_ids,
                      at::TensorList weights, at::TensorList caches, at::TensorList plans,
                      at::IntArrayRef partial_rows, at::ArrayRef<double> scales,
                      at::ArrayRef<double> softcaps, at::IntArrayRef windows,
                      const at::Tensor& final_norm, double norm_eps, int64_t num_heads,
                      int64_t num_kv_heads, int64_t head_dim, int64_t intermediate_size,
                      int64_t page_size, int64_t kind, int64_t group_size) {
  StackCall call = stack_of({weights, caches, scales, softcaps, windows, table, final_norm,
                             norm_eps, hidden.size(1), intermediate_size, num_heads, num_kv_heads,
                             head_dim, page_size, kind, group_size});
  TORCH_CHECK(plans.size() == 3 * call.layers.size() && partial_rows.size() == call.layers.size(),
              "there must be a plan per layer");
  check_contiguous(hidden, table.scalar_type(), "hidden");
  check_contiguous(positions, at::kLong, "positions");
  check_contiguous(slot_mapping, at::kLong, "slot_mapping");
  check_contiguous(block_ids, at::kInt, "block_ids");
  TORCH_CHECK(positions.numel() == hidden.size(0) && slot_mapping.numel() == hidden.size(0),
              "positions and slot_mapping must have one element per token");
  call.hidden = hidden.mutable_data_ptr();
  call.num_tokens = hidden.size(0);
  call.rotary.positions = positions.const_data_ptr<int64_t>();
  call.slot_mapping = slot_mapping.const_data_ptr<int64_t>();
  call.block_ids = block_ids.const_data_ptr<int32_t>();
  call.threads = threads();
  for (size_t i = 0; i < call.layers.size(); i++)
    set_plan(call.layers[i], &plans[3 * i], partial_rows[i]);
  run_stack(call);
}

inline void define_stack(torch::Library& m) {
  m.def(
      "decoder_stack(Tensor(a!) hidden, Tensor positions, Tensor rotary_table, "
      "Tensor slot_mapping, Tensor block_ids, Tensor[] weights, Tensor(b!)[] caches, "
      "Tensor[] plans, int[] partial_rows, float[] scales, float[] softcaps, int[] windows, "
      "Tensor final_norm, float norm_eps, int num_heads, int num_kv_heads, int head_dim, "
      "int intermediate_size, int page_size, int kind=0, int group_size=0) -> ()");
}

inline void implement_stack(torch::Library& m) { m.impl("decoder_stack", &decoder_stack_op); }

}  // namespace
}  // namespace toka
