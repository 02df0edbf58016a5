// Writing keys and values into the paged cache, and reading tiles of it back as floats.
#pragma once

#include <algorithm>

#include "attention.h"
#include "rotary.h"

namespace toka {

// One token's K and V of one head into its slot.
template <class T>
TOKA_INLINE void append_token(const CacheShape& shape, const T* k, const T* v, T* k_cache,
                              T* v_cache, int64_t slot, int64_t head) {
  constexpr int64_t PACK = Operand<T>::PACK;
  const int64_t block = slot / shape.page_size, offset = slot % shape.page_size;
  T* kp = k_cache + block * shape.k_block_size() + head * shape.k_head_size() + offset * PACK;
  T* vp = v_cache + block * shape.v_block_size() + head * shape.v_head_size() +
          offset / PACK * shape.padded_head_dim() * PACK + offset % PACK;
  const int64_t step = shape.page_size * PACK;
  int64_t h = 0;
  for (; h + PACK <= shape.head_dim; h += PACK) {
    std::memcpy(static_cast<void*>(kp + h / PACK * step), k + h, PACK * sizeof(T));
  }
  if (h < shape.head_dim) kp[h / PACK * step] = k[h];
  for (h = 0; h < shape.head_dim; h++) vp[h * PACK] = v[h];
}

// Brings the lines that append_token writes into the cache, to be written.
template <class T>
TOKA_INLINE void fetch_slot(const CacheShape& shape, const T* k_cache, const T* v_cache,
                            int64_t slot, int64_t head) {
  constexpr int64_t PACK = Operand<T>::PACK;
  const int64_t block = slot / shape.page_size, offset = slot % shape.page_size;
  const T* k = k_cache + block * shape.k_block_size() + head * shape.k_head_size() + offset * PACK;
  const T* v = v_cache + block * shape.v_block_size() + head * shape.v_head_size() +
               offset / PACK * shape.padded_head_dim() * PACK;
  const int64_t step = shape.page_size * PACK;
  for (int64_t h = 0; h < shape.head_dim; h += PACK) __builtin_prefetch(k + h / PACK * step, 1);
  constexpr int64_t LINE = 64 / sizeof(T);
  for (int64_t h = 0; h < shape.padded_head_dim() * PACK; h += LINE) __builtin_prefetch(v + h, 1);
}

// Writes one head of a token's k and v to its slot, k rotated if asked.
template <class T>
void append(const AttentionCall& call, int64_t token, int64_t head, T* rotated) {
  const CacheShape& shape = call.cache;
  const int64_t offset = head * shape.head_dim;
  const T* k = static_cast<const T*>(call.k) + token * call.k_stride + offset;
  const T* v = static_cast<const T*>(call.v) + token * call.v_stride + offset;
  if (call.rotary.table != nullptr) {
    rotate_head(call.rotary, call.rotary.k_norm, token, shape.head_dim, k, rotated);
    k = rotated;
  }
  append_token(shape, k, v, static_cast<T*>(call.k_cache), static_cast<T*>(call.v_cache),
               call.slot_mapping[token], head);
}

// Keys [begin, begin + count) of a row as floats: k_tile[h][stride], v_tile[token][padded H].
template <class T>
void gather_tile(const AttentionCall& call, const int32_t* blocks, int64_t head, int64_t begin,
                 int64_t count, float* k_tile, int64_t stride, float* v_tile) {
  constexpr int64_t PACK = Operand<T>::PACK;
  const CacheShape& shape = call.cache;
  const int64_t page = shape.page_size, padded = shape.padded_head_dim();
  const int64_t steps = (shape.head_dim + PACK - 1) / PACK;
  for (int64_t done = 0; done < count;) {
    const int64_t token = begin + done, offset = token % page;
    const int64_t n = std::min(page - offset, count - done);
    const int64_t block = blocks[token / page];
    const T* k = static_cast<const T*>(call.k_cache) + block * shape.k_block_size() +
                 head * shape.k_head_size() + offset * PACK;
    const T* v = static_cast<const T*>(call.v_cache) + block * shape.v_block_size() +
                 head * shape.v_head_size();
    for (int64_t s = 0; s < steps; s++) {
      const T* row = k + s * page * PACK;
      float* out = k_tile + s * PACK * stride + done;
      int64_t t = 0;
      if constexpr (PACK == 2) {
        for (; t + W <= n; t += W) {
          const U pairs = load_as<U>(row + 2 * t);
          store(out + t, pair_lo(pairs));
          store(out + stride + t, pair_hi(pairs));
        }
        for (; t < n; t++) {
          out[t] = to_float(row[2 * t]);
          out[stride + t] = to_float(row[2 * t + 1]);
        }
      } else {
        for (; t < n; t++) out[t] = to_float(row[t]);
      }
    }
    for (int64_t t = 0; t < n; t++) {
      const T* row = v + (offset + t) / PACK * padded * PACK;
      float* out = v_tile + (done + t) * padded;
      for (int64_t h = 0; h < padded; h += W) {
        if constexpr (PACK == 2) {
          const U pairs = load_as<U>(row + 2 * h);
          store(out + h, (offset + t) % 2 ? pair_hi(pairs) : pair_lo(pairs));
        } else {
          store(out + h, load(row + h));
        }
      }
    }
    done += n;
  }
}

}  // namespace toka
