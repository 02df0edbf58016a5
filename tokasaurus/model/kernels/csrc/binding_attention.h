// Attention as torch operators. Part of binding.cpp.
#pragma once

#include <torch/library.h>

#include "attention.h"
#include "binding_checks.h"
#include "huge_pages.h"

namespace toka {
namespace {

at::Tensor huge_zeros_op(int64_t elements, at::ScalarType dtype) {
  return tensor_over(map_huge_pages(elements * c10::elementSize(dtype)), elements, dtype);
}

at::Tensor ints(const void* data, int64_t rows, int64_t columns) {
  at::Tensor tensor = at::empty({rows, columns}, at::kInt);
  if (rows > 0) std::memcpy(tensor.mutable_data_ptr(), data, rows * columns * sizeof(int32_t));
  return tensor;
}

CacheShape cache_shape(int64_t num_kv_heads, int64_t head_dim, int64_t page_size,
                       at::ScalarType dtype) {
  return {num_kv_heads, head_dim, page_size, type_of(at::empty({0}, dtype), "the KV cache")};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, int64_t> attention_plan_op(
    const at::Tensor& query_lens, const at::Tensor& kv_lens, const at::Tensor& block_indptr,
    int64_t num_prefill_rows, const at::Tensor& groups, int64_t num_kv_heads, int64_t group_size,
    int64_t head_dim, int64_t page_size, at::ScalarType dtype, int64_t window) {
  for (const at::Tensor& t : {query_lens, kv_lens, block_indptr, groups})
    check_contiguous(t, at::kInt, "the plan's arrays");
  PlanRequest request{};
  request.num_rows = query_lens.numel();
  TORCH_CHECK(kv_lens.numel() == request.num_rows && block_indptr.numel() == request.num_rows + 1,
              "query_lens, kv_lens and block_indptr must agree");
  request.query_lens = query_lens.const_data_ptr<int32_t>();
  request.kv_lens = kv_lens.const_data_ptr<int32_t>();
  request.block_indptr = block_indptr.const_data_ptr<int32_t>();
  request.num_prefill_rows = num_prefill_rows;
  request.groups = groups.const_data_ptr<int32_t>();
  request.num_groups = groups.numel() / 3;
  request.cache = cache_shape(num_kv_heads, head_dim, page_size, dtype);
  request.group_size = group_size;
  request.window = window;
  request.threads = threads();
  const Plan plan = plan_attention(request);
  return {ints(plan.items.data(), plan.items.size(), sizeof(Item) / 4),
          ints(plan.merges.data(), plan.merges.size(), sizeof(Merge) / 4),
          ints(plan.parts.data(), plan.parts.size(), 1), plan.partial_rows};
}

// Elements of one block's K and of its V.
std::tuple<int64_t, int64_t> cache_block_sizes_op(int64_t num_kv_heads, int64_t head_dim,
                                                  int64_t page_size, at::ScalarType dtype) {
  const CacheShape shape = cache_shape(num_kv_heads, head_dim, page_size, dtype);
  return {shape.k_block_size(), shape.v_block_size()};
}

at::Tensor attention_op(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& slot_mapping, const at::Tensor& block_ids,
                        at::Tensor& k_cache, at::Tensor& v_cache, int64_t page_size, double scale,
                        double softcap, int64_t window, const std::optional<at::Tensor>& sinks,
                        const at::Tensor& items, const at::Tensor& merges, const at::Tensor& parts,
                        int64_t partial_rows) {
  AttentionCall call{};
  const Type type = type_of(k_cache, "the KV cache");
  for (const at::Tensor* t : {&q, &k, &v}) {
    TORCH_CHECK(t->dim() == 3 && t->scalar_type() == k_cache.scalar_type() &&
                    t->stride(2) == 1 && (t->size(1) == 1 || t->stride(1) == t->size(2)),
                "q, k and v must be [tokens, heads, head size] in the KV cache's type, with "
                "contiguous heads");
  }
  check_contiguous(slot_mapping, at::kLong, "slot_mapping");
  for (const at::Tensor* t : {&block_ids, &items, &merges, &parts})
    check_contiguous(*t, at::kInt, "the plan's arrays");
  call.q = q.const_data_ptr();
  call.k = k.const_data_ptr();
  call.v = v.const_data_ptr();
  call.q_stride = q.stride(0);
  call.k_stride = k.stride(0);
  call.v_stride = v.stride(0);
  call.num_tokens = q.size(0);
  call.num_heads = q.size(1);
  call.cache = {k.size(1), q.size(2), page_size, type};
  at::Tensor out = at::empty({q.size(0), q.size(1), q.size(2)}, q.options());
  call.out = out.mutable_data_ptr();
  call.slot_mapping = slot_mapping.const_data_ptr<int64_t>();
  call.block_ids = block_ids.const_data_ptr<int32_t>();
  call.k_cache = k_cache.mutable_data_ptr();
  call.v_cache = v_cache.mutable_data_ptr();
  call.scale = float(scale);
  call.softcap = float(softcap);
  call.window = window;
  call.sinks = optional_floats(sinks, call.num_heads, "sinks");
  call.items = reinterpret_cast<const Item*>(items.const_data_ptr<int32_t>());
  call.num_items = items.size(0);
  call.merges = reinterpret_cast<const Merge*>(merges.const_data_ptr<int32_t>());
  call.num_merges = merges.size(0);
  call.parts = parts.const_data_ptr<int32_t>();
  call.partial_rows = partial_rows;
  call.threads = threads();
  attention(call);
  return out;
}

inline void define_attention(torch::Library& m) {
  m.def(
      "attention_plan(Tensor query_lens, Tensor kv_lens, Tensor block_indptr, "
      "int num_prefill_rows, Tensor groups, int num_kv_heads, int group_size, int head_dim, "
      "int page_size, ScalarType dtype, int window) -> (Tensor, Tensor, Tensor, int)");
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor slot_mapping, Tensor block_ids, "
      "Tensor(a!) k_cache, Tensor(b!) v_cache, int page_size, float scale, float softcap, "
      "int window, Tensor? sinks, Tensor items, Tensor merges, Tensor parts, int partial_rows) "
      "-> Tensor");
  m.def("huge_zeros(int elements, ScalarType dtype) -> Tensor", &huge_zeros_op);
  m.def("cache_block_sizes(int num_kv_heads, int head_dim, int page_size, ScalarType dtype) "
        "-> (int, int)",
        &cache_block_sizes_op);
}

inline void implement_attention(torch::Library& m) {
  m.impl("attention_plan", &attention_plan_op);
  m.impl("attention", &attention_op);
}

}  // namespace
}  // namespace toka
