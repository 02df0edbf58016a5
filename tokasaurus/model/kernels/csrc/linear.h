// Dense layers over weights that are packed once.
//
// A packed weight [N, K] is ceil(N / NR) panels; panel p holds columns p*NR .. p*NR+NR-1 of W^T in
// the layout of micro.h, padded with zeros in both directions. A gated weight has the panels of its
// two halves interleaved (gate 0, up 0, gate 1, up 1, ...), so that one task makes silu(gate) * up.
#pragma once

#include <cstdint>

#include "micro.h"

namespace toka {

enum class Type : int { Float = 0, BFloat16 = 1 };

struct LinearCall {
  const void* x;         // [M, K] in the weight's type
  int64_t x_stride;      // elements between rows of x
  int64_t num_rows;      // M
  int64_t in_features;   // K
  int64_t out_features;  // N, of one half if gated
  bool gated;            // out = silu(x gate^T) * (x up^T)
  const void* packed;
  const float* bias;        // [N], or [2N] if gated; may be null
  const float* norm_weight; // [K]: x is RMS-normalised first; may be null
  float norm_eps;
  const void* residual;  // [M, N] in the weight's type, added to the result; may be null
  int64_t residual_stride;
  void* out;             // [M, N]
  int64_t out_stride;
  Type weight_type;
  Type out_type;
  int threads;
};

int64_t packed_elements(int64_t out_features, int64_t in_features, bool gated, Type type);
void pack_weight(const void* weight, int64_t out_features, int64_t in_features, bool gated,
                 Type type, void* packed, int threads);
// Rows of a packed weight back in plain form: the embedding lookup of tied weights.
void packed_rows(const void* packed, const int64_t* ids, int64_t num_ids, int64_t in_features,
                 Type type, void* out, int threads);
void linear(const LinearCall& call);

}  // namespace toka
