// Weights in few bits: the layouts of their packed panels and what is done with them.
//
// A panel holds NR columns of W^T, in each format padded with zeros in both directions:
//   INT8          NR scales (float), NR sums of levels (int32), levels [K / DOT_PACK][NR][DOT_PACK]
//   INT8_WEIGHTS  NR scales (float), levels [K, padded to a multiple of 8, over LEVEL_PACK][NR]
//                 [LEVEL_PACK]
//   INT4_WEIGHTS  per group of k: NR pairs of bf16 (scale, minimum), codes [group / 8][NR], where a
//                 32-bit lane holds eight consecutive k of a column, the first one lowest
// A level (int8, -127 to 127) stands for level * scale, a code (0 to 15) for code * scale +
// minimum.
#pragma once

#include "epilogue.h"
#include "int8_dot.h"

namespace toka {

constexpr int CODES = 8;  // in a lane of INT4_WEIGHTS

// Consecutive k of a column in INT8_WEIGHTS: as many as `dot` wants where it takes 16-bit levels.
#if defined(TOKA_INT16_PAIRS)
constexpr int LEVEL_PACK = DOT_PACK;
#else
constexpr int LEVEL_PACK = 1;
#endif

constexpr int64_t MIN_GROUP_SIZE = 32;

// Numbers that are to become levels and have no larger one among them count as zeros: the largest
// level over it might be infinite.
constexpr float SMALLEST_MAGNITUDE = 1e-30f;

struct Int8Panel {
  int64_t steps, bytes;

  explicit Int8Panel(int64_t in_features)
      : steps(round_up(in_features, DOT_PACK) / DOT_PACK), bytes(NR * (8 + steps * DOT_PACK)) {}
  static const float* scales(const char* panel) { return reinterpret_cast<const float*>(panel); }
  static const int32_t* sums(const char* panel) {
    return reinterpret_cast<const int32_t*>(panel) + NR;
  }
  static const int8_t* levels(const char* panel) {
    return reinterpret_cast<const int8_t*>(panel) + 8 * NR;
  }
};

struct Int8WeightsPanel {
  int64_t steps, bytes;

  explicit Int8WeightsPanel(int64_t in_features)
      : steps(round_up(in_features, CODES)), bytes(NR * (4 + steps)) {}
  static const float* scales(const char* panel) { return reinterpret_cast<const float*>(panel); }
  static const int8_t* levels(const char* panel) {
    return reinterpret_cast<const int8_t*>(panel) + 4 * NR;
  }
  // Where the level of column c at k is among them.
  static int64_t index(int64_t c, int64_t k) {
    return (k / LEVEL_PACK * NR + c) * LEVEL_PACK + k % LEVEL_PACK;
  }
};

struct Int4WeightsPanel {
  int64_t steps, groups, group_steps, bytes;

  Int4WeightsPanel(int64_t in_features, int64_t group_size)
      : steps(round_up(in_features, CODES) / CODES),
        groups(round_up(in_features, group_size) / group_size),
        group_steps(group_size / CODES),
        bytes((groups + steps) * NR * 4) {}
  // Lanes of a group: NR pairs, then its codes.
  int64_t group_offset(int64_t group) const { return group * (1 + group_steps) * NR; }
  int64_t steps_of(int64_t group) const {
    return std::min(group_steps, steps - group * group_steps);
  }
};

int64_t quantized_bytes(int64_t out_features, int64_t in_features, bool gated, Format format);
void pack_quantized(const void* weight, int64_t out_features, int64_t in_features, bool gated,
                    Type type, Format format, void* packed, int threads);
void quantized_rows(const void* packed, const int64_t* ids, int64_t num_ids, int64_t in_features,
                    Type type, Format format, void* out, int threads);
void linear_int8(Team& team, const LinearCall& call, void* room);
void linear_weight_only(Team& team, const LinearCall& call, void* room);

}  // namespace toka
