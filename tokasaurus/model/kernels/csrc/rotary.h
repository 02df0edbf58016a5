// Rotary position embedding of one head (first half against second half), after its own RMS norm
// where a model has one. Rounds where the reference rounds: after the norm, its weight, the rotation.
#pragma once

#include "attention.h"
#include "norm.h"

namespace toka {

template <class T>
void rotate_head(const Rotary& rotary, const float* norm, int64_t token, int64_t head_dim,
                 const T* x, T* out) {
  if (norm != nullptr) {
    normalize_row(x, head_dim, rotary.norm_eps, norm, out);
    x = out;
  } else if (x != out) {
    std::memcpy(static_cast<void*>(out), x, head_dim * sizeof(T));
  }
  const int64_t half = rotary.dim / 2;
  const T* cosines = static_cast<const T*>(rotary.table) + rotary.positions[token] * rotary.dim;
  const T* sines = cosines + half;
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    const F c = load(cosines + i), s = load(sines + i);
    const F first = load(x + i), second = load(x + half + i);
    store(out + i, first * c - second * s);
    store(out + half + i, second * c + first * s);
  }
  for (; i < half; i++) {
    const float c = to_float(cosines[i]), s = to_float(sines[i]);
    const float first = to_float(x[i]), second = to_float(x[half + i]);
    assign(out + i, first * c - second * s);
    assign(out + half + i, second * c + first * s);
  }
}

}  // namespace toka
