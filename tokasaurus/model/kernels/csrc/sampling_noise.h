// Arrivals of tokens and blocks as model/sampling/noise.py defines them, W at a time.
#pragma once

#include "simd.h"

namespace toka {

// log of positive normal numbers to about 1 ulp; anything below 1e-37 counts as that.
// The polynomial on [sqrt(1/2), sqrt(2)] is that of the Cephes library's logf.
TOKA_INLINE F vlog(F x) {
  const U bits = (U)vmax(x, splat(1e-37f));
  const U shifted = bits - 0x3f3504f3u;  // sqrt(1/2): the exponent counts from there
  const I exponent = (I)shifted >> 23;
  const F m = (F)((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  const F e = __builtin_convertvector(exponent, F);
  F p = splat(7.0376836292e-2f);
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  const F square = m * m;
  const F y = p * m * square + e * -2.12194440e-4f - 0.5f * square;
  return m + y + e * 0.693359375f;
}

struct NoiseKey {
  uint32_t low, high;
};

template <class V>
TOKA_INLINE V mix(V x) {
  x ^= x >> 16;
  x *= 0x21f0aaadu;
  x ^= x >> 15;
  x *= 0x735a2d97u;
  x ^= x >> 15;
  return x;
}

template <class V>
TOKA_INLINE V noise_word(NoiseKey key, V counter) {
  return mix(mix(counter ^ key.low) ^ key.high);
}

// -log1p(-u) of the word's uniform number u.
TOKA_INLINE F exponential(U word) {
  const F uniform = vmin((__builtin_convertvector(word, F) + 0.5f) * 0x1p-32f,
                         splat(1.0f - 0x1p-24f));
  const F rest = 1.0f - uniform;
  // What rounding `rest` lost is made good by the ratio; where nothing is left of u, u it is.
  const F lost = 1.0f - rest;
  const F precise = -vlog(rest) * uniform / vmax(lost, splat(1e-37f));
  return select(lost == 0.0f, uniform, precise);
}

TOKA_INLINE U lane_numbers() {
  U lanes;
  for (int i = 0; i < W; i++) lanes[i] = uint32_t(i);
  return lanes;
}

// How many of the 64 tokens of block `block` there are.
TOKA_INLINE int64_t tokens_of_block(int64_t block, int64_t vocab_size) {
  const int64_t rest = vocab_size - block * 64;
  return rest < 1 ? 1 : rest < 64 ? rest : 64;
}

// The first arrivals of blocks first .. first + W - 1.
TOKA_INLINE F first_arrivals(NoiseKey key, int64_t first, int64_t vocab_size) {
  const F arrivals = exponential(noise_word(key, (lane_numbers() + uint32_t(first)) * 2u + 1u));
  if ((first + W) * 64 <= vocab_size) return arrivals * (1.0f / 64);
  F sizes;
  for (int i = 0; i < W; i++) sizes[i] = float(tokens_of_block(first + i, vocab_size));
  return arrivals / sizes;
}

// When each of a block's 64 tokens arrives.
TOKA_INLINE void member_arrivals(NoiseKey key, int64_t block, int64_t vocab_size, float* out) {
  const uint32_t word = noise_word(key, uint32_t(block) * 2u + 1u);
  const int64_t size = tokens_of_block(block, vocab_size);
  const auto member = int64_t(uint64_t(mix(word ^ 0x5bd1e995u)) * uint64_t(size) >> 32);
  const float first = exponential(splat_u(word))[0] / float(size);
  for (int64_t i = 0; i < 64; i += W) {
    const U counter = (lane_numbers() + uint32_t(block * 64 + i)) * 2u;
    store(out + i, exponential(noise_word(key, counter)) + first);
  }
  out[member] = first;
}

}  // namespace toka
