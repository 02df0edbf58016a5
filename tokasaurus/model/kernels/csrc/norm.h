// RMS norm of a row, rounding to the row's type where the reference does.
#pragma once

#include "simd.h"

namespace toka {

// (x / rms, rounded to T) * weight, rounded to T. `out` may be x.
template <class T>
void normalize_row(const T* x, int64_t size, float eps, const float* weight, T* out) {
  F sum{};
  float tail = 0;
  int64_t k = 0;
  for (; k + W <= size; k += W) {
    const F v = load(x + k);
    sum += v * v;
  }
  for (; k < size; k++) tail += to_float(x[k]) * to_float(x[k]);
  const float factor = 1.0f / std::sqrt((reduce_add(sum) + tail) / float(size) + eps);
  T rounded[W];
  for (k = 0; k + W <= size; k += W) {
    store(rounded, load(x + k) * factor);
    store(out + k, load(rounded) * load(weight + k));
  }
  for (; k < size; k++) {
    assign(rounded, to_float(x[k]) * factor);
    assign(out + k, to_float(rounded[0]) * weight[k]);
  }
}

}  // namespace toka
