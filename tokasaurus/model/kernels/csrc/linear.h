// Dense layers over weights that are packed once, in the activations' type or in few bits.
//
// A packed weight [N, K] in the activations' type is ceil(N / NR) panels; panel p holds columns
// p*NR .. p*NR+NR-1 of W^T in the layout of micro.h, padded with zeros in both directions. A gated
// weight has the panels of its two halves interleaved (gate 0, up 0, gate 1, up 1, ...), so that
// one task makes silu(gate) * up. The panels of weights in few bits: see quantized.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "micro.h"
#include "team.h"

namespace toka {

enum class Type : int { Float = 0, BFloat16 = 1 };

// A sum of more products of two int8 levels may not fit into int32.
constexpr int64_t MAX_INT8_FEATURES = 131072;

// How a weight is held.
struct Format {
  enum Kind : int {
    PLAIN = 0,         // in the activations' type
    INT8 = 1,          // a scale per output; activations rounded to int8, a scale per row of x
    INT8_WEIGHTS = 2,  // a scale per output; activations as they are
    INT4_WEIGHTS = 3,  // a scale and a minimum per output and group; activations as they are
  };
  Kind kind = PLAIN;
  int64_t group_size = 0;  // of K, INT4_WEIGHTS alone: 32, 64 or 128
};

struct LinearCall {
  const void* x;         // [M, K] of `type`
  int64_t x_stride;      // elements between rows of x
  int64_t num_rows;      // M
  int64_t in_features;   // K
  int64_t out_features;  // N, of one half if gated
  bool gated;            // out = silu(x gate^T) * (x up^T)
  const void* packed;
  const float* bias;        // [N], or [2N] if gated; may be null
  const float* norm_weight; // [K]: x is RMS-normalised first; may be null
  float norm_eps;
  const void* residual;  // [M, N] of `type`, added to the result; may be null
  int64_t residual_stride;
  void* out;             // [M, N]
  int64_t out_stride;
  Type type;
  Type out_type;  // `type` or Float
  Format format;
  int threads;
};

int64_t packed_bytes(int64_t out_features, int64_t in_features, bool gated, Type type,
                     Format format);
// `weight` is [N, K] of `type`; rounded here if the format has few bits.
void pack_weight(const void* weight, int64_t out_features, int64_t in_features, bool gated,
                 Type type, Format format, void* packed, int threads);
// Rows of a packed weight back in plain form, of `type`: the embedding lookup of tied weights.
void packed_rows(const void* packed, const int64_t* ids, int64_t num_ids, int64_t in_features,
                 Type type, Format format, void* out, int threads);
void linear(const LinearCall& call);

// The same as a part of a region, all of whose threads call it: outputs are whole after a barrier
// that follows. `room` is theirs together, of as many bytes as the call needs.
void linear(Team& team, const LinearCall& call, void* room);
size_t linear_room(const LinearCall& call);
// The weights that this thread will read first.
Ahead linear_ahead(const Team& team, const LinearCall& call);

}  // namespace toka
