// Rounds weights to few bits, packs them and reads rows back.
#include "quantized.h"

namespace toka {
namespace {

// One column's weights as floats, and what they are rounded to.
struct Column {
  const float* weights;
  int64_t size;
};

float largest(const Column& column) {
  float found = 0;
  for (int64_t k = 0; k < column.size; k++) {
    const float magnitude = std::fabs(column.weights[k]);
    if (std::isnan(magnitude)) return magnitude;
    found = std::max(found, magnitude);
  }
  return found;
}

// Calls put(k, level) for all k; returns the scale. A column with anything but finite numbers gets
// a scale that is not a number: its outputs must not look right.
template <class Put>
float round_to_int8(const Column& column, Put&& put) {
  const float scale = largest(column) / 127.0f;
  if (!std::isfinite(scale)) return std::numeric_limits<float>::quiet_NaN();
  for (int64_t k = 0; k < column.size; k++)
    put(k, scale == 0 ? 0 : int8_t(std::nearbyint(column.weights[k] / scale)));
  return scale;
}

struct Grid {
  bf16 scale, minimum;

  int code(float weight) const {
    const float step = to_float(scale);
    if (step == 0) return 0;
    return int(std::nearbyint(
        std::min(std::max((weight - to_float(minimum)) / step, 0.0f), 15.0f)));
  }
  float value(int code) const { return float(code) * to_float(scale) + to_float(minimum); }
};

// The grid of 16 values with the least squared error among those over the whole range of the group
// and over some narrower ones about the same middle.
Grid fit_grid(const float* weights, int64_t size) {
  float low = weights[0], high = weights[0], sum = 0;
  for (int64_t k = 0; k < size; k++) {
    low = std::min(low, weights[k]);
    high = std::max(high, weights[k]);
    sum += weights[k] * 0;
  }
  if (sum != 0) return {to_bf16(sum), to_bf16(sum)};  // NaN: an infinity or a NaN is among them
  const float middle = (low + high) / 2, half = (high - low) / 2;
  Grid best{};
  float least = std::numeric_limits<float>::infinity();
  for (int shrink = 0; shrink < 6; shrink++) {
    const float reach = half * (1.0f - 0.04f * float(shrink));
    const Grid grid{to_bf16(reach * 2 / 15), to_bf16(middle - reach)};
    float error = 0;
    for (int64_t k = 0; k < size; k++) {
      const float miss = grid.value(grid.code(weights[k])) - weights[k];
      error += miss * miss;
    }
    if (error < least) {
      least = error;
      best = grid;
    }
  }
  return best;
}

void pack_int8(const Column& column, int64_t c, char* panel) {
  int32_t sum = 0;
  int8_t* levels = const_cast<int8_t*>(Int8Panel::levels(panel));
  const float scale = round_to_int8(column, [&](int64_t k, int8_t level) {
    levels[(k / DOT_PACK * NR + c) * DOT_PACK + k % DOT_PACK] = level;
    sum += level;
  });
  const_cast<float*>(Int8Panel::scales(panel))[c] = scale;
  const_cast<int32_t*>(Int8Panel::sums(panel))[c] = sum;
}

void pack_int8_weights(const Column& column, int64_t c, char* panel) {
  int8_t* levels = const_cast<int8_t*>(Int8WeightsPanel::levels(panel));
  const_cast<float*>(Int8WeightsPanel::scales(panel))[c] =
      round_to_int8(column, [&](int64_t k, int8_t level) {
        levels[Int8WeightsPanel::index(c, k)] = level;
      });
}

void pack_int4_weights(const Column& column, int64_t c, int64_t group_size, char* panel) {
  const Int4WeightsPanel shape(column.size, group_size);
  for (int64_t g = 0; g < shape.groups; g++) {
    const float* weights = column.weights + g * group_size;
    const int64_t size = std::min(group_size, column.size - g * group_size);
    const Grid grid = fit_grid(weights, size);
    uint32_t* lanes = reinterpret_cast<uint32_t*>(panel) + shape.group_offset(g) + c;
    lanes[0] = uint32_t(grid.minimum.bits) << 16 | grid.scale.bits;
    for (int64_t k = 0; k < size; k++)
      lanes[(1 + k / CODES) * NR] |= uint32_t(grid.code(weights[k])) << (4 * (k % CODES));
  }
}

template <class T>
void pack_columns(const T* weight, int64_t out_features, int64_t in_features, bool gated,
                  Format format, char* packed, int threads) {
  const int64_t panels = num_panels(out_features, gated);
  const int64_t panel_bytes = quantized_bytes(NR, in_features, false, format);
  parallel_pieces(panels, 1, threads, [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    float* floats = scratch.get<float>(in_features);
    for (int64_t p = first; p < last; p++) {
      char* panel = packed + p * panel_bytes;
      std::memset(panel, 0, panel_bytes);
      const int64_t half = gated ? p % 2 : 0;
      const int64_t column0 = (gated ? p / 2 : p) * NR;
      const int64_t columns = std::min<int64_t>(NR, out_features - column0);
      for (int64_t c = 0; c < columns; c++) {
        const T* row = weight + (half * out_features + column0 + c) * in_features;
        for (int64_t k = 0; k < in_features; k++) floats[k] = to_float(row[k]);
        const Column column{floats, in_features};
        if (format.kind == Format::INT8)
          pack_int8(column, c, panel);
        else if (format.kind == Format::INT8_WEIGHTS)
          pack_int8_weights(column, c, panel);
        else
          pack_int4_weights(column, c, format.group_size, panel);
      }
    }
  });
}

float weight_at(const char* panel, int64_t c, int64_t k, int64_t in_features, Format format) {
  if (format.kind == Format::INT8)
    return Int8Panel::scales(panel)[c] *
           float(Int8Panel::levels(panel)[(k / DOT_PACK * NR + c) * DOT_PACK + k % DOT_PACK]);
  if (format.kind == Format::INT8_WEIGHTS)
    return Int8WeightsPanel::scales(panel)[c] *
           float(Int8WeightsPanel::levels(panel)[Int8WeightsPanel::index(c, k)]);
  const Int4WeightsPanel shape(in_features, format.group_size);
  const int64_t group = k / format.group_size, within = k % format.group_size;
  const uint32_t* lanes =
      reinterpret_cast<const uint32_t*>(panel) + shape.group_offset(group) + c;
  const Grid grid{{uint16_t(lanes[0])}, {uint16_t(lanes[0] >> 16)}};
  return grid.value(int(lanes[(1 + within / CODES) * NR] >> (4 * (within % CODES)) & 15));
}

template <class T>
void read_rows(const char* packed, const int64_t* ids, int64_t num_ids, int64_t in_features,
               Format format, T* out, int threads) {
  const int64_t panel_bytes = quantized_bytes(NR, in_features, false, format);
  parallel_pieces(num_ids, 8, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const char* panel = packed + ids[i] / NR * panel_bytes;
      for (int64_t k = 0; k < in_features; k++)
        assign(out + i * in_features + k, weight_at(panel, ids[i] % NR, k, in_features, format));
    }
  });
}

}  // namespace

int64_t quantized_bytes(int64_t out_features, int64_t in_features, bool gated, Format format) {
  const int64_t panels = num_panels(out_features, gated);
  if (format.kind == Format::INT8) return panels * Int8Panel(in_features).bytes;
  if (format.kind == Format::INT8_WEIGHTS) return panels * Int8WeightsPanel(in_features).bytes;
  return panels * Int4WeightsPanel(in_features, format.group_size).bytes;
}

void pack_quantized(const void* weight, int64_t out_features, int64_t in_features, bool gated,
                    Type type, Format format, void* packed, int threads) {
  char* out = static_cast<char*>(packed);
  if (type == Type::BFloat16)
    pack_columns(static_cast<const bf16*>(weight), out_features, in_features, gated, format, out,
                 threads);
  else
    pack_columns(static_cast<const float*>(weight), out_features, in_features, gated, format, out,
                 threads);
}

void quantized_rows(const void* packed, const int64_t* ids, int64_t num_ids, int64_t in_features,
                    Type type, Format format, void* out, int threads) {
  const char* panels = static_cast<const char*>(packed);
  if (type == Type::BFloat16)
    read_rows(panels, ids, num_ids, in_features, format, static_cast<bf16*>(out), threads);
  else
    read_rows(panels, ids, num_ids, in_features, format, static_cast<float*>(out), threads);
}

}  // namespace toka
