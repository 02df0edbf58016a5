// Linear layers in integers: rows of x are rounded to int8 with a scale of their own.
#include "quantized.h"

namespace toka {
namespace {

// A row without larger values counts as zeros: 127 over it might be infinite.
constexpr float SMALLEST_MAGNITUDE = 1e-30f;

// Rounds a row to levels, padded with zeros; returns its scale. A row with anything but finite
// numbers gets a scale that is not a number.
template <class T>
float quantize_row(const T* x, int64_t size, Level* out, int64_t padded) {
  I largest{};  // as bits: their order is that of the magnitudes, infinity and NaN above all numbers
  int64_t k = 0;
  for (; k + W <= size; k += W) {
    const I bits = (I)load(x + k) & splat_i(0x7fffffff);
    largest = bits > largest ? bits : largest;
  }
  F rest{};
  for (int64_t i = k; i < size; i++) rest[i - k] = to_float(x[i]);
  const I rest_bits = (I)rest & splat_i(0x7fffffff);
  largest = rest_bits > largest ? rest_bits : largest;
  int32_t found = 0;
  for (int i = 0; i < W; i++) found = std::max<int32_t>(found, largest[i]);
  float magnitude;
  std::memcpy(&magnitude, &found, 4);
  const bool finite = magnitude <= std::numeric_limits<float>::max();
  const float factor = magnitude > SMALLEST_MAGNITUDE ? 127.0f / magnitude : 0.0f;
  const auto levels_of = [&](F values) { return to_nearest(finite ? values * factor : F{}); };
  for (k = 0; k + W <= size; k += W) store_levels(out + k, levels_of(load(x + k)));
  if (k < size) {
    Level tail[W];
    store_levels(tail, levels_of(rest));
    std::memcpy(out + k, tail, (size - k) * sizeof(Level));
  }
  for (k = size; k < padded; k++) out[k] = Level(LEVEL_OFFSET);
  return finite ? magnitude / 127.0f : std::numeric_limits<float>::quiet_NaN();
}

template <class T>
float prepare_levels(const LinearCall& call, int64_t row, Level* out, int64_t padded) {
  const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
  const int64_t K = call.in_features;
  if (call.norm_weight != nullptr) {
    thread_local Scratch scratch;
    T* normalized = scratch.get<T>(K);
    normalize_row(x, K, call.norm_eps, call.norm_weight, normalized);
    x = normalized;
  }
  return quantize_row(x, K, out, padded);
}

// tile[rows][2] += A B over `steps` of a panel or of an expanded slice. rows <= MR.
template <bool STREAMS, class B>
TOKA_INLINE void add_product(const Level* a, int64_t lda, const B* b, int64_t steps, int rows,
                             I* tile) {
  add_to_tile(rows, tile, [&](auto& acc, int v) TOKA_ALWAYS {
    constexpr bool FEW = std::extent_v<std::remove_reference_t<decltype(acc)>> <= MAX_STREAMING_ROWS;
    if constexpr (std::is_same<B, int32_t>::value)
      multiply_operands(a, lda, b + v * W, int(steps), acc);
    else
      multiply_levels<STREAMS && FEW>(a, lda, b + v * W * DOT_PACK, int(steps), acc);
  });
}

// A block of rows times one panel, in slices of K whose part of the panel stays in the L1 cache.
void panel_product(const Level* a, int64_t lda, const int8_t* levels, int64_t steps, int64_t rows,
                   I* tile, [[maybe_unused]] int32_t* expanded) {
  const int64_t tiles = (rows + MR - 1) / MR, tile_rows = (rows + tiles - 1) / tiles;
  const int64_t slice = tiles == 1 ? steps : 2 * K_SLICE / DOT_PACK;
  std::memset(static_cast<void*>(tile), 0, rows * 2 * sizeof(I));
  for (int64_t k = 0; k < steps; k += slice) {
    const int64_t count = std::min(slice, steps - k);
    const int8_t* part = levels + k * NR * DOT_PACK;
    const bool expand = EXPANDS_LEVELS && tiles > 2;
    if (expand)
      for (int64_t i = 0; i < count * 2; i++) {
        __builtin_prefetch(part + i * W * DOT_PACK + STREAM_DISTANCE);
        const I step = load_step(part + i * W * DOT_PACK);
        std::memcpy(expanded + i * W, &step, sizeof(I));
      }
    for (int64_t m = 0; m < rows; m += tile_rows) {
      const int n = int(std::min(tile_rows, rows - m));
      const Level* row = a + m * lda + k * DOT_PACK;
      if (tiles == 1)
        add_product<true>(row, lda, part, count, n, tile + 2 * m);
      else if (expand)
        add_product<false>(row, lda, static_cast<const int32_t*>(expanded), count, n, tile + 2 * m);
      else
        add_product<false>(row, lda, part, count, n, tile + 2 * m);
    }
  }
}

// Sums of levels to numbers, in place.
void scale_tile(I* tile, const char* panel, const float* row_scales, int64_t rows) {
  F scales[2];
  I offsets[2];
  for (int n = 0; n < 2; n++) {
    scales[n] = load(Int8Panel::scales(panel) + n * W);
    offsets[n] = load_as<I>(Int8Panel::sums(panel) + n * W) * LEVEL_OFFSET;
  }
  for (int64_t m = 0; m < rows; m++)
    for (int n = 0; n < 2; n++) {
      const F sums = __builtin_convertvector(tile[2 * m + n] - offsets[n], F);
      tile[2 * m + n] = (I)(sums * (scales[n] * row_scales[m]));
    }
}

// Panels [first, last) of outputs of a single row.
template <class T, class Out>
void row_task(const LinearCall& call, const Level* levels, float row_scale, int64_t first,
              int64_t last) {
  const Int8Panel shape(call.in_features);
  const char* packed = static_cast<const char*>(call.packed);
  const int halves = call.gated ? 2 : 1;
  const Epilogue<T, Out> epilogue{call};
  in_streams<PANELS_AT_ONCE>(first, last, [&](auto streams, int64_t p, int64_t distance) TOKA_ALWAYS {
    constexpr int P = decltype(streams)::value;
    F values[2][P][2];
    for (int h = 0; h < halves; h++) {
      const char* panel = packed + (p * halves + h) * shape.bytes;
      const int64_t panel_distance = distance * halves * shape.bytes;
      I sums[P][2] = {};
      multiply_level_panels(levels, Int8Panel::levels(panel), panel_distance, shape.steps, sums);
      for (int i = 0; i < P; i++) {
        scale_tile(sums[i], panel + i * panel_distance, &row_scale, 1);
        std::memcpy(values[h][i], sums[i], sizeof(sums[i]));
      }
    }
    for (int i = 0; i < P; i++)
      epilogue(values[0][i], call.gated ? values[1][i] : nullptr, 1, 0, (p + i * distance) * NR);
  });
}

template <class T, class Out>
void run(const LinearCall& call) {
  const Int8Panel shape(call.in_features);
  const int64_t M = call.num_rows, padded = shape.steps * DOT_PACK;
  thread_local Scratch levels_scratch, scales_scratch;
  Level* levels = levels_scratch.get<Level>(M * padded);
  float* row_scales = scales_scratch.get<float>(M);
  parallel_pieces(M, 8, call.threads, [&](int64_t first, int64_t last) {
    for (int64_t m = first; m < last; m++)
      row_scales[m] = prepare_levels<T>(call, m, levels + m * padded, padded);
  });
  const char* packed = static_cast<const char*>(call.packed);
  const Epilogue<T, Out> epilogue{call};
  const int halves = call.gated ? 2 : 1;
  row_panel_tasks(call, padded * sizeof(Level), [&](int64_t row0, int64_t rows, int64_t first,
                                                    int64_t last) {
    if (M == 1) return row_task<T, Out>(call, levels, row_scales[0], first, last);
    thread_local Scratch scratch;
    int32_t* expanded = scratch.get<int32_t>(2 * K_SLICE / DOT_PACK * NR + halves * rows * 2 * W);
    I* tiles = reinterpret_cast<I*>(expanded + 2 * K_SLICE / DOT_PACK * NR);
    F* results[2] = {reinterpret_cast<F*>(tiles), nullptr};
    if (call.gated) results[1] = results[0] + 2 * rows;
    for (int64_t p = first; p < last; p++) {
      for (int h = 0; h < halves; h++) {
        const char* panel = packed + (p * halves + h) * shape.bytes;
        I* tile = tiles + h * 2 * rows;
        panel_product(levels + row0 * padded, padded, Int8Panel::levels(panel), shape.steps, rows,
                      tile, expanded);
        scale_tile(tile, panel, row_scales + row0, rows);
      }
      epilogue(results[0], results[1], int(rows), row0, p * NR);
    }
  });
}

}  // namespace

void linear_int8(const LinearCall& call) {
  if (call.type == Type::Float)
    run<float, float>(call);
  else if (call.out_type == Type::Float)
    run<bf16, float>(call);
  else
    run<bf16, bf16>(call);
}

}  // namespace toka
