// Linear layers in integers: rows of x are rounded to int8 with a scale of their own.
#include "panel_streams.h"
#include "quantized.h"

namespace toka {
namespace {

// Rounds a row to levels, padded with zeros; returns its scale. A row with anything but finite
// numbers gets a scale that is not a number.
template <class T>
float quantize_row(const T* x, int64_t size, Level* out, int64_t padded) {
  I largest{};  // as bits, ordered as the magnitudes are: infinity and NaN above all numbers
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

// tile[rows][2] += A B over `steps` of a panel. rows <= MR.
template <bool STREAMS>
TOKA_INLINE void add_product(const Level* a, int64_t lda, const int8_t* b, int64_t steps, int rows,
                             I* tile) {
  add_to_tile(rows, tile, [&](auto& acc, int v) TOKA_ALWAYS {
    constexpr int M = std::extent_v<std::remove_reference_t<decltype(acc)>>;
    constexpr bool FEW = M <= MAX_FETCHED_ROWS;
    multiply_levels<STREAMS && FEW>(a, lda, b + v * W * DOT_PACK, int(steps), acc);
  });
}

// A block of rows times one panel, in slices of K whose part of the panel stays in the L1 cache.
void panel_product(const Level* a, int64_t lda, const int8_t* levels, int64_t steps, int64_t rows,
                   I* tile) {
  const int64_t tiles = (rows + MR - 1) / MR, tile_rows = (rows + tiles - 1) / tiles;
  const int64_t slice = tiles == 1 ? steps : 2 * K_SLICE / DOT_PACK;
  std::memset(static_cast<void*>(tile), 0, rows * 2 * sizeof(I));
  for (int64_t k = 0; k < steps; k += slice) {
    const int64_t count = std::min(slice, steps - k);
    const int8_t* part = levels + k * NR * DOT_PACK;
    for (int64_t m = 0; m < rows; m += tile_rows) {
      const int n = int(std::min(tile_rows, rows - m));
      const Level* row = a + m * lda + k * DOT_PACK;
      if (tiles == 1)
        add_product<true>(row, lda, part, count, n, tile + 2 * m);
      else
        add_product<false>(row, lda, part, count, n, tile + 2 * m);
    }
  }
}

// Sums of levels to numbers, in place: vectors F from then on.
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
      const F numbers = sums * (scales[n] * row_scales[m]);
      std::memcpy(static_cast<void*>(tile + 2 * m + n), &numbers, sizeof(F));
    }
}

// Rows of levels, then their scales, in one block.
struct LevelRows {
  int64_t num_rows, padded;

  size_t bytes() const { return num_rows * (padded * sizeof(Level) + sizeof(float)); }
  Level* levels(void* block) const { return static_cast<Level*>(block); }
  float* scales(void* block) const {
    return reinterpret_cast<float*>(levels(block) + num_rows * padded);
  }
};

// Rows [row0, row0 + rows) times panels [first, last).
template <class T, class Out>
void panels_task(const LinearCall& call, const Int8Panel& shape, const Level* levels,
                 const float* row_scales, int64_t row0, int64_t rows, int64_t first, int64_t last) {
  const char* packed = static_cast<const char*>(call.packed);
  const Epilogue<T, Out> epilogue{call};
  const int halves = call.gated ? 2 : 1;
  const int64_t padded = shape.steps * DOT_PACK;
  thread_local Scratch scratch;
  I* tiles = reinterpret_cast<I*>(scratch.get<int32_t>(halves * rows * 2 * W));
  F* results[2] = {reinterpret_cast<F*>(tiles), nullptr};
  if (call.gated) results[1] = results[0] + 2 * rows;
  for (int64_t p = first; p < last; p++) {
    for (int h = 0; h < halves; h++) {
      const char* panel = packed + (p * halves + h) * shape.bytes;
      I* tile = tiles + h * 2 * rows;
      panel_product(levels + row0 * padded, padded, Int8Panel::levels(panel), shape.steps, rows,
                    tile);
      scale_tile(tile, panel, row_scales + row0, rows);
    }
    epilogue(results[0], results[1], int(rows), row0, p * NR);
  }
}

template <class T, class Out>
void run(Team& team, const LinearCall& call, void* room) {
  const Int8Panel shape(call.in_features);
  const LevelRows rows_of{call.num_rows, shape.steps * DOT_PACK};
  void* block =
      ready_rows(team, call.num_rows, rows_of.bytes(), room, [&](int64_t row, void* target) {
        rows_of.scales(target)[row] = prepare_levels<T>(
            call, row, rows_of.levels(target) + row * rows_of.padded, rows_of.padded);
      });
  const Level* levels = rows_of.levels(block);
  const float* scales = rows_of.scales(block);
  if (call.num_rows > 1) {
    row_panel_tasks(team, call, rows_of.padded * sizeof(Level),
                    [&](int64_t row0, int64_t rows, int64_t first, int64_t last) {
                      panels_task<T, Out>(call, shape, levels, scales, row0, rows, first, last);
                    });
    return;
  }
  stream_panels<T, Out>(
      team, call, shape.bytes, [&](const char* panel, int64_t distance, auto& sums) TOKA_ALWAYS {
        constexpr int P = std::extent_v<std::remove_reference_t<decltype(sums)>>;
        I products[P][2] = {};
        multiply_level_panels(levels, Int8Panel::levels(panel), distance, shape.steps, products);
        for (int i = 0; i < P; i++) scale_tile(products[i], panel + i * distance, scales, 1);
        std::memcpy(sums, products, sizeof(products));
      });
}

}  // namespace

void linear_int8(Team& team, const LinearCall& call, void* room) {
  if (call.type == Type::Float)
    run<float, float>(team, call, room);
  else if (call.out_type == Type::Float)
    run<bf16, float>(team, call, room);
  else
    run<bf16, bf16>(team, call, room);
}

}  // namespace toka
