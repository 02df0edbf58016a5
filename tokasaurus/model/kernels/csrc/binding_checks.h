// Argument checks and conversions shared by the operator bindings.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "linear.h"

namespace toka {

// One number for plans and regions alike.
inline int threads() { return std::min(at::get_num_threads(), Team::MAX_THREADS); }

inline Type type_of(const at::Tensor& tensor, const char* name) {
  if (tensor.scalar_type() == at::kBFloat16) return Type::BFloat16;
  TORCH_CHECK(tensor.scalar_type() == at::kFloat, name, " is ", tensor.scalar_type(),
              "; the CPU kernels take bfloat16 and float32");
  return Type::Float;
}

inline void check_contiguous(const at::Tensor& tensor, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == dtype, name,
              " must be contiguous ", dtype);
}

// Operators name a format by its number in linear.h and the group's size.
inline Format format_of(int64_t kind, int64_t group_size) {
  TORCH_CHECK(kind >= Format::PLAIN && kind <= Format::INT4_WEIGHTS, "no weight format ", kind);
  const Format format{Format::Kind(kind), group_size};
  const bool has_groups = format.kind == Format::INT4_WEIGHTS;
  TORCH_CHECK(has_groups ? group_size == 32 || group_size == 64 || group_size == 128
                         : group_size == 0,
              "the group size is 32, 64 or 128 for int4 weights and 0 otherwise");
  return format;
}

// What tensors of packed weights count in.
inline at::ScalarType packed_dtype(Type type, Format format) {
  if (format.kind != Format::PLAIN) return at::kByte;
  return type == Type::BFloat16 ? at::kBFloat16 : at::kFloat;
}

// `packed` must be what pack_weight makes of a weight of these sizes, or as many as there are
// groups.
inline void check_packed(const at::Tensor& packed, int64_t out_features, int64_t in_features,
                         bool gated, Type type, Format format, int64_t groups = 1) {
  check_contiguous(packed, packed_dtype(type, format), "a packed weight");
  TORCH_CHECK(int64_t(packed.nbytes()) ==
                  groups * packed_bytes(out_features, in_features, gated, type, format),
              "a packed weight of ", packed.nbytes(), " bytes is not of ", groups, " x ",
              out_features, " x ", in_features);
}

inline const float* optional_floats(const std::optional<at::Tensor>& tensor, int64_t count,
                                    const char* name) {
  if (!tensor.has_value()) return nullptr;
  check_contiguous(*tensor, at::kFloat, name);
  TORCH_CHECK(tensor->numel() == count, name, " must have ", count, " elements");
  return tensor->const_data_ptr<float>();
}

inline at::Tensor tensor_over(std::shared_ptr<char> memory, int64_t elements,
                              at::ScalarType dtype) {
  void* data = memory.get();
  return at::from_blob(data, {elements}, [memory](void*) {}, at::TensorOptions().dtype(dtype));
}

// Rows of the last dimension's elements: the stride between them, with the inner one being 1.
inline int64_t row_stride(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.dim() >= 2 && tensor.stride(-1) == 1, name, " must have contiguous rows");
  return tensor.stride(0);
}

}  // namespace toka
