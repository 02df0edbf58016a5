// The kernels as torch operators, in a namespace per build flavour.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "attention.h"
#include "binding_checks.h"
#include "huge_pages.h"
#include "linear.h"

namespace toka {
namespace {

int threads() { return at::get_num_threads(); }

const float* optional_floats(const std::optional<at::Tensor>& tensor, int64_t count,
                             const char* name) {
  if (!tensor.has_value()) return nullptr;
  check_contiguous(*tensor, at::kFloat, name);
  TORCH_CHECK(tensor->numel() == count, name, " must have ", count, " elements");
  return tensor->const_data_ptr<float>();
}

at::Tensor tensor_over(std::shared_ptr<char> memory, int64_t elements, at::ScalarType dtype) {
  void* data = memory.get();
  return at::from_blob(data, {elements}, [memory](void*) {}, at::TensorOptions().dtype(dtype));
}

at::Tensor huge_zeros_op(int64_t elements, at::ScalarType dtype) {
  return tensor_over(map_huge_pages(elements * c10::elementSize(dtype)), elements, dtype);
}

at::Tensor packed_memory(int64_t elements, at::ScalarType dtype) {
  static HugePageArena arena;
  return tensor_over(arena.allocate(elements * c10::elementSize(dtype)), elements, dtype);
}

at::Tensor pack_weight_op(const at::Tensor& weight, bool gated) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "weight must be a contiguous matrix");
  const Type type = type_of(weight, "weight");
  const int64_t rows = weight.size(0), columns = weight.size(1);
  TORCH_CHECK(!gated || rows % 2 == 0, "a gated weight has two halves of rows");
  const int64_t out_features = gated ? rows / 2 : rows;
  const int64_t elements = packed_elements(out_features, columns, gated, type);
  at::Tensor packed = packed_memory(elements, weight.scalar_type());
  pack_weight(weight.const_data_ptr(), out_features, columns, gated, type,
              packed.mutable_data_ptr(), threads());
  return packed;
}

// Weights [G, N, K] of G groups, each packed: [G, elements].
at::Tensor pack_group_op(const at::Tensor& weights) {
  TORCH_CHECK(weights.dim() == 3 && weights.is_contiguous(), "weights must be contiguous matrices");
  const Type type = type_of(weights, "weights");
  const int64_t groups = weights.size(0), rows = weights.size(1), columns = weights.size(2);
  const int64_t elements = packed_elements(rows, columns, false, type);
  at::Tensor packed = packed_memory(groups * elements, weights.scalar_type());
  const char* source = static_cast<const char*>(weights.const_data_ptr());
  char* target = static_cast<char*>(packed.mutable_data_ptr());
  for (int64_t g = 0; g < groups; g++)
    pack_weight(source + g * rows * columns * weights.element_size(), rows, columns, false, type,
                target + g * elements * weights.element_size(), threads());
  return packed.view({groups, elements});
}

at::Tensor packed_rows_op(const at::Tensor& packed, const at::Tensor& ids, int64_t in_features) {
  check_contiguous(ids, at::kLong, "ids");
  at::Tensor out = at::empty({ids.numel(), in_features}, packed.options());
  packed_rows(packed.const_data_ptr(), ids.const_data_ptr<int64_t>(), ids.numel(), in_features,
              type_of(packed, "packed"), out.mutable_data_ptr(), threads());
  return out;
}

at::Tensor linear_op(const at::Tensor& x, const at::Tensor& packed, int64_t out_features,
                     bool gated, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& norm_weight, double norm_eps,
                     const std::optional<at::Tensor>& residual, bool float_output) {
  LinearCall call{};
  call.weight_type = type_of(packed, "packed");
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == packed.scalar_type(), "x must be a matrix of ",
              packed.scalar_type());
  call.num_rows = x.size(0);
  call.in_features = x.size(1);
  call.out_features = out_features;
  call.gated = gated;
  TORCH_CHECK(packed.is_contiguous() &&
                  packed.numel() ==
                      packed_elements(out_features, call.in_features, gated, call.weight_type),
              "packed does not belong to x and out_features");
  call.x = x.const_data_ptr();
  call.x_stride = row_stride(x, "x");
  call.packed = packed.const_data_ptr();
  call.bias = optional_floats(bias, gated ? 2 * out_features : out_features, "bias");
  call.norm_weight = optional_floats(norm_weight, call.in_features, "norm_weight");
  call.norm_eps = float(norm_eps);
  if (residual.has_value()) {
    TORCH_CHECK(residual->scalar_type() == packed.scalar_type() &&
                    residual->sizes() == at::IntArrayRef({call.num_rows, out_features}),
                "residual must have the output's shape and the weight's type");
    call.residual = residual->const_data_ptr();
    call.residual_stride = row_stride(*residual, "residual");
  }
  const bool floats = float_output || call.weight_type == Type::Float;
  call.out_type = floats ? Type::Float : Type::BFloat16;
  at::Tensor out = at::empty({call.num_rows, out_features},
                             x.options().dtype(floats ? at::kFloat : at::kBFloat16));
  call.out = out.mutable_data_ptr();
  call.out_stride = out_features;
  call.threads = threads();
  linear(call);
  return out;
}

// Rows ends[g - 1] .. ends[g] - 1 of x times weight g. Rows after the last end are left as they are.
at::Tensor grouped_linear_op(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& ends,
                             int64_t out_features) {
  check_contiguous(ends, at::kInt, "ends");
  const Type type = type_of(packed, "packed");
  TORCH_CHECK(x.dim() == 2 && x.scalar_type() == packed.scalar_type(), "x must be a matrix of ",
              packed.scalar_type());
  const int64_t groups = ends.numel(), rows = x.size(0), columns = x.size(1);
  const int64_t elements = packed_elements(out_features, columns, false, type);
  TORCH_CHECK(packed.is_contiguous() && packed.sizes() == at::IntArrayRef({groups, elements}),
              "packed does not belong to x, ends and out_features");
  at::Tensor out = at::empty({rows, out_features}, x.options());
  LinearCall call{};
  call.weight_type = call.out_type = type;
  call.in_features = columns;
  call.out_features = call.out_stride = out_features;
  call.x_stride = row_stride(x, "x");
  call.threads = threads();
  const int64_t size = x.element_size();
  const int32_t* end = ends.const_data_ptr<int32_t>();
  for (int64_t g = 0, start = 0; g < groups; start = end[g++]) {
    TORCH_CHECK(start <= end[g] && end[g] <= rows, "ends must rise, up to the number of rows");
    call.num_rows = end[g] - start;
    call.x = static_cast<const char*>(x.const_data_ptr()) + start * call.x_stride * size;
    call.packed = static_cast<const char*>(packed.const_data_ptr()) + g * elements * size;
    call.out = static_cast<char*>(out.mutable_data_ptr()) + start * out_features * size;
    linear(call);
  }
  return out;
}

at::Tensor ints(const void* data, int64_t rows, int64_t columns) {
  at::Tensor tensor = at::empty({rows, columns}, at::kInt);
  if (rows > 0) std::memcpy(tensor.mutable_data_ptr(), data, rows * columns * sizeof(int32_t));
  return tensor;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, int64_t> attention_plan_op(
    const at::Tensor& query_lens, const at::Tensor& kv_lens, const at::Tensor& block_indptr,
    int64_t num_prefill_rows, const at::Tensor& groups, int64_t num_kv_heads, int64_t group_size,
    int64_t page_size, int64_t window) {
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
  request.num_kv_heads = num_kv_heads;
  request.group_size = group_size;
  request.page_size = page_size;
  request.window = window;
  request.threads = threads();
  const Plan plan = plan_attention(request);
  return {ints(plan.items.data(), plan.items.size(), sizeof(Item) / 4),
          ints(plan.merges.data(), plan.merges.size(), sizeof(Merge) / 4),
          ints(plan.parts.data(), plan.parts.size(), 1), plan.partial_rows};
}

CacheShape cache_shape(int64_t num_kv_heads, int64_t head_dim, int64_t page_size, Type type) {
  return {num_kv_heads, head_dim, page_size, type};
}

// Elements of one block's K and of its V.
std::tuple<int64_t, int64_t> cache_block_sizes_op(int64_t num_kv_heads, int64_t head_dim,
                                                  int64_t page_size, at::ScalarType dtype) {
  const CacheShape shape = cache_shape(num_kv_heads, head_dim, page_size,
                                       type_of(at::empty({0}, dtype), "the KV cache"));
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
  call.q = const_cast<void*>(q.const_data_ptr());  // only written when there is a rotary table
  call.k = k.const_data_ptr();
  call.v = v.const_data_ptr();
  call.q_stride = q.stride(0);
  call.k_stride = k.stride(0);
  call.v_stride = v.stride(0);
  call.num_tokens = q.size(0);
  call.num_heads = q.size(1);
  call.cache = cache_shape(k.size(1), q.size(2), page_size, type);
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

}  // namespace
}  // namespace toka

#define TOKA_LIBRARY(name, m) TORCH_LIBRARY(name, m)
#define TOKA_LIBRARY_IMPL(name, key, m) TORCH_LIBRARY_IMPL(name, key, m)

TOKA_LIBRARY(TOKA_NAMESPACE, m) {
  m.def("pack_weight(Tensor weight, bool gated) -> Tensor");
  m.def("packed_rows(Tensor packed, Tensor ids, int in_features) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor packed, int out_features, bool gated=False, Tensor? bias=None, "
      "Tensor? norm_weight=None, float norm_eps=0.0, Tensor? residual=None, "
      "bool float_output=False) -> Tensor");
  m.def("pack_group(Tensor weights) -> Tensor");
  m.def("grouped_linear(Tensor x, Tensor packed, Tensor ends, int out_features) -> Tensor");
  m.def(
      "attention_plan(Tensor query_lens, Tensor kv_lens, Tensor block_indptr, "
      "int num_prefill_rows, Tensor groups, int num_kv_heads, int group_size, int page_size, "
      "int window) -> (Tensor, Tensor, Tensor, int)");
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor slot_mapping, Tensor block_ids, "
      "Tensor(a!) k_cache, Tensor(b!) v_cache, int page_size, float scale, float softcap, "
      "int window, Tensor? sinks, Tensor items, Tensor merges, Tensor parts, int partial_rows) "
      "-> Tensor");
  m.def("huge_zeros(int elements, ScalarType dtype) -> Tensor", &toka::huge_zeros_op);
  m.def("cache_block_sizes(int num_kv_heads, int head_dim, int page_size, ScalarType dtype) "
        "-> (int, int)",
        &toka::cache_block_sizes_op);
}

TOKA_LIBRARY_IMPL(TOKA_NAMESPACE, CPU, m) {
  m.impl("pack_weight", &toka::pack_weight_op);
  m.impl("packed_rows", &toka::packed_rows_op);
  m.impl("linear", &toka::linear_op);
  m.impl("pack_group", &toka::pack_group_op);
  m.impl("grouped_linear", &toka::grouped_linear_op);
  m.impl("attention_plan", &toka::attention_plan_op);
  m.impl("attention", &toka::attention_op);
}
