// Linear layers as torch operators. Part of binding.cpp.
#pragma once

#include <torch/library.h>

#include "binding_checks.h"
#include "huge_pages.h"

namespace toka {
namespace {

at::Tensor packed_memory(int64_t bytes, at::ScalarType dtype) {
  static HugePageArena arena;
  return tensor_over(arena.allocate(bytes), bytes / int64_t(c10::elementSize(dtype)), dtype);
}

void check_int8_size(int64_t in_features, Format format) {
  TORCH_CHECK(format.kind != Format::INT8 || in_features <= MAX_INT8_FEATURES,
              "int32 sums hold at most ", MAX_INT8_FEATURES, " products of int8");
}

at::Tensor pack_weight_op(const at::Tensor& weight, bool gated, int64_t kind, int64_t group_size) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous(), "weight must be a contiguous matrix");
  const Type type = type_of(weight, "weight");
  const Format format = format_of(kind, group_size);
  const int64_t rows = weight.size(0), columns = weight.size(1);
  TORCH_CHECK(!gated || rows % 2 == 0, "a gated weight has two halves of rows");
  check_int8_size(columns, format);
  const int64_t out_features = gated ? rows / 2 : rows;
  const int64_t bytes = packed_bytes(out_features, columns, gated, type, format);
  at::Tensor packed = packed_memory(bytes, packed_dtype(type, format));
  pack_weight(weight.const_data_ptr(), out_features, columns, gated, type, format,
              packed.mutable_data_ptr(), threads());
  return packed;
}

// Weights [G, N, K] of G groups, each packed: [G, elements].
at::Tensor pack_group_op(const at::Tensor& weights, int64_t kind, int64_t group_size) {
  TORCH_CHECK(weights.dim() == 3 && weights.is_contiguous(), "weights must be contiguous matrices");
  const Type type = type_of(weights, "weights");
  const Format format = format_of(kind, group_size);
  const int64_t groups = weights.size(0), rows = weights.size(1), columns = weights.size(2);
  check_int8_size(columns, format);
  const int64_t bytes = packed_bytes(rows, columns, false, type, format);
  at::Tensor packed = packed_memory(groups * bytes, packed_dtype(type, format));
  const char* source = static_cast<const char*>(weights.const_data_ptr());
  char* target = static_cast<char*>(packed.mutable_data_ptr());
  for (int64_t g = 0; g < groups; g++)
    pack_weight(source + g * rows * columns * weights.element_size(), rows, columns, false, type,
                format, target + g * bytes, threads());
  return packed.view({groups, -1});
}

at::Tensor packed_rows_op(const at::Tensor& packed, const at::Tensor& ids, int64_t in_features,
                          at::ScalarType dtype, int64_t kind, int64_t group_size) {
  check_contiguous(ids, at::kLong, "ids");
  at::Tensor out = at::empty({ids.numel(), in_features}, at::TensorOptions().dtype(dtype));
  const Type type = type_of(out, "the rows");
  const Format format = format_of(kind, group_size);
  check_contiguous(packed, packed_dtype(type, format), "a packed weight");
  const int64_t panel_bytes = packed_bytes(NR, in_features, false, type, format);
  const int64_t num_rows = int64_t(packed.nbytes()) / panel_bytes * NR;
  const int64_t* data = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < ids.numel(); i++)
    TORCH_CHECK(data[i] >= 0 && data[i] < num_rows, "no row ", data[i], " of a packed weight");
  packed_rows(packed.const_data_ptr(), data, ids.numel(), in_features, type, format,
              out.mutable_data_ptr(), threads());
  return out;
}

void set_residual(LinearCall& call, const std::optional<at::Tensor>& residual,
                  const at::Tensor& x) {
  if (!residual.has_value()) return;
  TORCH_CHECK(residual->scalar_type() == x.scalar_type() &&
                  residual->sizes() == at::IntArrayRef({call.num_rows, call.out_features}),
              "residual must have the output's shape and the type of x");
  call.residual = residual->const_data_ptr();
  call.residual_stride = row_stride(*residual, "residual");
}

at::Tensor linear_op(const at::Tensor& x, const at::Tensor& packed, int64_t out_features,
                     bool gated, const std::optional<at::Tensor>& bias,
                     const std::optional<at::Tensor>& norm_weight, double norm_eps,
                     const std::optional<at::Tensor>& residual, bool float_output, int64_t kind,
                     int64_t group_size) {
  LinearCall call{};
  TORCH_CHECK(x.dim() == 2, "x must be a matrix");
  call.type = type_of(x, "x");
  call.format = format_of(kind, group_size);
  call.num_rows = x.size(0);
  call.in_features = x.size(1);
  call.out_features = out_features;
  call.gated = gated;
  check_packed(packed, out_features, call.in_features, gated, call.type, call.format);
  call.x = x.const_data_ptr();
  call.x_stride = row_stride(x, "x");
  call.packed = packed.const_data_ptr();
  call.bias = optional_floats(bias, gated ? 2 * out_features : out_features, "bias");
  call.norm_weight = optional_floats(norm_weight, call.in_features, "norm_weight");
  call.norm_eps = float(norm_eps);
  set_residual(call, residual, x);
  const bool floats = float_output || call.type == Type::Float;
  call.out_type = floats ? Type::Float : Type::BFloat16;
  at::Tensor out = at::empty({call.num_rows, out_features},
                             x.options().dtype(floats ? at::kFloat : at::kBFloat16));
  call.out = out.mutable_data_ptr();
  call.out_stride = out_features;
  call.threads = threads();
  linear(call);
  return out;
}

// Rows ends[g - 1] .. ends[g] - 1 of x times weight g. Rows after the last end are left as they
// are.
at::Tensor grouped_linear_op(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& ends,
                             int64_t out_features, int64_t kind, int64_t group_size) {
  check_contiguous(ends, at::kInt, "ends");
  TORCH_CHECK(x.dim() == 2, "x must be a matrix");
  const int64_t groups = ends.numel(), rows = x.size(0);
  LinearCall call{};
  call.type = call.out_type = type_of(x, "x");
  call.format = format_of(kind, group_size);
  call.in_features = x.size(1);
  call.out_features = call.out_stride = out_features;
  call.x_stride = row_stride(x, "x");
  call.threads = threads();
  TORCH_CHECK(packed.dim() == 2 && packed.size(0) == groups,
              "there must be as many ends as weights");
  check_packed(packed, out_features, call.in_features, false, call.type, call.format, groups);
  at::Tensor out = at::empty({rows, out_features}, x.options());
  const int64_t bytes =
      packed_bytes(out_features, call.in_features, false, call.type, call.format);
  const int64_t size = x.element_size();
  const int32_t* end = ends.const_data_ptr<int32_t>();
  for (int64_t g = 0, start = 0; g < groups; start = end[g++]) {
    TORCH_CHECK(start <= end[g] && end[g] <= rows, "ends must rise, up to the number of rows");
    call.num_rows = end[g] - start;
    call.x = static_cast<const char*>(x.const_data_ptr()) + start * call.x_stride * size;
    call.packed = static_cast<const char*>(packed.const_data_ptr()) + g * bytes;
    call.out = static_cast<char*>(out.mutable_data_ptr()) + start * out_features * size;
    linear(call);
  }
  return out;
}

// `kind` and `group_size` are a Format of linear.h.
inline void define_linear(torch::Library& m) {
  m.def("pack_weight(Tensor weight, bool gated, int kind=0, int group_size=0) -> Tensor");
  m.def("pack_group(Tensor weights, int kind=0, int group_size=0) -> Tensor");
  m.def(
      "packed_rows(Tensor packed, Tensor ids, int in_features, ScalarType dtype, int kind=0, "
      "int group_size=0) -> Tensor");
  m.def(
      "linear(Tensor x, Tensor packed, int out_features, bool gated=False, Tensor? bias=None, "
      "Tensor? norm_weight=None, float norm_eps=0.0, Tensor? residual=None, "
      "bool float_output=False, int kind=0, int group_size=0) -> Tensor");
  m.def(
      "grouped_linear(Tensor x, Tensor packed, Tensor ends, int out_features, int kind=0, "
      "int group_size=0) -> Tensor");
}

inline void implement_linear(torch::Library& m) {
  m.impl("pack_weight", &pack_weight_op);
  m.impl("pack_group", &pack_group_op);
  m.impl("packed_rows", &packed_rows_op);
  m.impl("linear", &linear_op);
  m.impl("grouped_linear", &grouped_linear_op);
}

}  // namespace
}  // namespace toka
