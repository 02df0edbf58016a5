// Argument checks and conversions shared by the operator bindings.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "linear.h"

namespace toka {

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

// Rows of the last dimension's elements: the stride between them, with the inner one being 1.
inline int64_t row_stride(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK(tensor.dim() >= 2 && tensor.stride(-1) == 1, name, " must have contiguous rows");
  return tensor.stride(0);
}

}  // namespace toka
