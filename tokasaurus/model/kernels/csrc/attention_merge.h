// Outputs of rows whose keys were divided between items, from what the items left.
#pragma once

#include <algorithm>

#include "attention.h"
#include "attention_softmax.h"
#include "parallel.h"

namespace toka {

// Floats of a partial row: the unnormalised output, then the maximum (in powers of two) and the sum.
inline int64_t partial_stride(int64_t padded_head_dim) { return padded_head_dim + 16; }

template <class T>
TOKA_INLINE void write_row(const float* o, float factor, int64_t head_dim, T* out) {
  int64_t h = 0;
  for (; h + W <= head_dim; h += W) store(out + h, load(o + h) * factor);
  for (; h < head_dim; h++) assign(out + h, o[h] * factor);
}

// The output of one token's heads over one KV head.
template <class T>
void merge_parts(const AttentionCall& call, const Merge& merge, const float* partials) {
  thread_local Scratch scratch;
  const int64_t head_dim = call.cache.head_dim, padded = call.cache.padded_head_dim();
  const int64_t group = call.num_heads / call.cache.num_kv_heads, stride = partial_stride(padded);
  const int32_t* parts = call.parts + merge.first;
  float* output = scratch.get<float>(padded);
  for (int64_t g = 0; g < group; g++) {
    const int64_t head = merge.kv_head * group + g;
    const float sink = call.sinks != nullptr ? call.sinks[head] * LOG2_E : NEG_INF;
    float top = sink;
    for (int n = 0; n < merge.count; n++)
      top = std::max(top, partials[(parts[n] + g) * stride + padded]);
    float sum = call.sinks != nullptr ? std::exp2(sink - top) : 0.0f;
    std::memset(output, 0, padded * sizeof(float));
    for (int n = 0; n < merge.count; n++) {
      const float* part = partials + (parts[n] + g) * stride;
      const float weight = std::exp2(part[padded] - top);
      sum += weight * part[padded + 1];
      for (int64_t h = 0; h < padded; h += W)
        store(output + h, load(output + h) + load(part + h) * weight);
    }
    T* out = static_cast<T*>(call.out) + (merge.token * call.num_heads + head) * head_dim;
    write_row(output, 1.0f / sum, head_dim, out);
  }
}

}  // namespace toka
