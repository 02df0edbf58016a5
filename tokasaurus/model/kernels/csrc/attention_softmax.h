// Exponentials of attention, in powers of two: one factor of the scores takes care of the base.
#pragma once

#include <cstdint>

#include "simd.h"

namespace toka {

constexpr float LOG2_E = 1.44269504088896341f;

// 2^(x - largest), relative error 1e-7, for x up to some powers of two above `largest`. Below
// 2^-126 it is 0; NaN stays NaN.
TOKA_INLINE F exp2_of_difference(F x, float largest) {
  const F t = vmax(splat(-127.0f), x - largest);  // in this order NaN stays
  const F magic = splat(12582912.0f + 127.0f);    // 1.5 * 2^23: adding it rounds to an integer
  const F shifted = t + magic;
  const F r = t - (shifted - magic);
  F p = splat(1.326472731e-3f);
  p = p * r + 9.671512991e-3f;
  p = p * r + 5.550733581e-2f;
  p = p * r + 2.402224243e-1f;
  p = p * r + 6.931470037e-1f;
  p = p * r + 1.0f;
  // The low bits of `shifted` are the exponent's field of the power of two; that of 2^-127 is 0.
  return p * (F)((U)shifted << 23);
}

// Whether any lane is greater.
TOKA_INLINE bool any_above(F x, float limit) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return _mm256_movemask_ps((__m256)(F)(x > splat(limit))) != 0;
#else
  return reduce_max(x) > limit;
#endif
}

// scores = cap * tanh(scores * scale); -inf stays.
inline void cap_scores(float* scores, int64_t count, float scale, float cap) {
  for (int64_t c = 0; c < count; c += W) {
    const F x = load(scores + c);
    store(scores + c, select(x == NEG_INF, x, vtanh(x * scale) * cap));
  }
}

}  // namespace toka
