// Maxima of blocks, the best column, log-sum-exp and the draw: see sampling.h.
#include "sampling.h"

#include <cmath>

#include "sampling_noise.h"
#include "scratch.h"

namespace toka {
namespace {

constexpr int64_t BLOCKS_PER_PIECE = 256, ROWS_PER_PIECE = 8;
constexpr float BOUND_SLACK = 1e-3f;  // more than rounding can take from a block's bound

int64_t pieces_of_row(const Logits& logits) {
  return (logits.blocks() + BLOCKS_PER_PIECE - 1) / BLOCKS_PER_PIECE;
}

// NaN if one of the 64 is.
TOKA_INLINE float full_block_maximum(const float* x) {
  F best = load(x);
  I is_nan = best != best;
  for (int i = W; i < SAMPLING_BLOCK; i += W) {
    const F v = load(x + i);
    is_nan |= v != v;
    best = vmax(best, v);
  }
  return reduce_max(select(is_nan, splat(1.0f), F{})) > 0 ? std::nanf("") : reduce_max(best);
}

// sum of exp(x - peak) over the row.
double mass_of_row(const Logits& logits, int64_t row, float peak) {
  const float* x = logits.row(row);
  const int64_t full = logits.num_columns / SAMPLING_BLOCK;
  double mass = 0;
  for (int64_t b = 0; b < full; b++) {
    F sum{};
    for (int i = 0; i < SAMPLING_BLOCK; i += W)
      sum += vexp(load(x + b * SAMPLING_BLOCK + i) - peak);
    mass += reduce_add(sum);
  }
  for (int64_t i = full * SAMPLING_BLOCK; i < logits.num_columns; i++)
    mass += std::exp(x[i] - peak);
  return mass;
}

struct Winner {
  float score = NEG_INF;
  int64_t column = 0;
};

// One row's race.
class Race {
 public:
  Race(const Logits& logits, const DrawCall& call, int64_t index)
      : logits_(logits), call_(call), row_(call.selected.rows[index]),
        key_{uint32_t(call.keys[2 * index]), uint32_t(call.keys[2 * index + 1])},
        peak_(call.peak[index]), temperature_(call.selected.temperature[index]),
        threshold_(call.threshold[index]) {}

  // `bounds` has room for the row's blocks, rounded up to W.
  Winner run(float* bounds) {
    if (!std::isfinite(peak_)) return {};
    const int64_t blocks = logits_.blocks();
    const int64_t likeliest = fill_bounds(bounds);
    look_into(likeliest);
    for (int64_t b = 0; b < blocks; b += W) {
      if (!(reduce_max(load(bounds + b)) >= winner_.score)) continue;
      for (int64_t i = b; i < b + W && i < blocks; i++)
        if (i != likeliest && bounds[i] >= winner_.score && bounds[i] > NEG_INF) look_into(i);
    }
    return winner_;
  }

 private:
  // The score that no token of each block exceeds; returns the block with the largest.
  int64_t fill_bounds(float* bounds) {
    const int64_t blocks = logits_.blocks();
    const float* maxima = logits_.row_maxima(row_);
    int64_t likeliest = 0;
    float best = NEG_INF;
    for (int64_t b = 0; b < blocks; b += W) {
      float tail[W];
      const float* source = maxima + b;
      if (b + W > blocks) {
        for (int i = 0; i < W; i++) tail[i] = b + i < blocks ? maxima[b + i] : NEG_INF;
        source = tail;
      }
      const F scaled = (load(source) - peak_) / temperature_;
      F bound = splat(NEG_INF);
      // A block whose best token is dropped, or can't win with the luckiest arrival, needs none.
      if (reduce_max(scaled) >= threshold_ && reduce_max(scaled) + LUCKIEST >= best) {
        const F arrivals = first_arrivals(key_, call_.first_block + b, call_.vocab_size);
        bound = select(scaled >= threshold_, scaled - vlog(arrivals) + BOUND_SLACK, bound);
      }
      store(bounds + b, bound);
      if (!(reduce_max(bound) > best)) continue;
      for (int i = 0; i < W; i++)
        if (bound[i] > best) best = bound[i], likeliest = b + i;
    }
    return likeliest;
  }

  void look_into(int64_t block) {
    float arrivals[SAMPLING_BLOCK], x[SAMPLING_BLOCK], scores[SAMPLING_BLOCK];
    member_arrivals(key_, call_.first_block + block, call_.vocab_size, arrivals);
    const float* source = logits_.row(row_) + block * SAMPLING_BLOCK;
    const int64_t size = logits_.block_size(block);
    for (int64_t i = 0; i < SAMPLING_BLOCK; i++) x[i] = i < size ? source[i] : NEG_INF;
    for (int64_t i = 0; i < SAMPLING_BLOCK; i += W) {
      const F scaled = (load(x + i) - peak_) / temperature_;
      const F score = scaled - vlog(load(arrivals + i));
      store(scores + i, select(scaled >= threshold_, score, splat(NEG_INF)));
    }
    for (int64_t i = 0; i < size; i++)
      if (scores[i] > winner_.score) winner_ = {scores[i], block * SAMPLING_BLOCK + i};
  }

  // -log of a block's smallest possible arrival, 2^-33 / 64, rounded up, and the slack.
  static constexpr float LUCKIEST = 27.1f;

  const Logits& logits_;
  const DrawCall& call_;
  const int64_t row_;
  const NoiseKey key_;
  const float peak_, temperature_, threshold_;
  Winner winner_;
};

}  // namespace

float maximum_of(const float* x, int64_t count) {
  float best = x[0];
  for (int64_t i = 1; i < count; i++)
    if (!(x[i] <= best)) best = best != best ? best : x[i];
  return best;
}

int64_t maxima_pieces(const Logits& logits, int64_t num_rows) {
  return num_rows * pieces_of_row(logits);
}

int64_t best_pieces(int64_t num_rows) { return (num_rows + ROWS_PER_PIECE - 1) / ROWS_PER_PIECE; }

void block_maxima(Team& team, const Logits& logits, int64_t num_rows, float* maxima) {
  const int64_t blocks = logits.blocks(), pieces = pieces_of_row(logits);
  team.pieces(num_rows * pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; piece++) {
      const int64_t row = piece / pieces, start = piece % pieces * BLOCKS_PER_PIECE;
      const int64_t end = start + BLOCKS_PER_PIECE < blocks ? start + BLOCKS_PER_PIECE : blocks;
      for (int64_t b = start; b < end; b++) {
        const float* x = logits.row(row) + b * SAMPLING_BLOCK;
        const int64_t size = logits.block_size(b);
        maxima[row * blocks + b] =
            size == SAMPLING_BLOCK ? full_block_maximum(x) : maximum_of(x, size);
      }
    }
  });
}

void best_columns(Team& team, const Logits& logits, int64_t num_rows, int64_t* columns,
                  float* peaks) {
  team.pieces(num_rows, ROWS_PER_PIECE, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
      const float* maxima = logits.row_maxima(row);
      const int64_t blocks = logits.blocks();
      const float peak = maximum_of(maxima, blocks);
      int64_t block = 0, column = 0;
      while (block < blocks && maxima[block] != peak) block++;
      if (block < blocks) {
        const float* x = logits.row(row);
        column = block * SAMPLING_BLOCK;
        while (x[column] != peak) column++;
      }
      columns[row] = column;
      if (peaks != nullptr) peaks[row] = peak;
    }
  });
}

void mark_broken_rows(const Logits& logits, int64_t num_rows, int64_t* columns) {
  for (int64_t row = 0; row < num_rows; row++)
    if (!std::isfinite(maximum_of(logits.row_maxima(row), logits.blocks()))) columns[row] = -1;
}

void log_normalizers(Team& team, const Logits& logits, const SelectedRows& selected, float* out) {
  team.pieces(selected.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t row = selected.rows[i];
      const float peak = maximum_of(logits.row_maxima(row), logits.blocks());
      out[i] = std::isfinite(peak) ? peak + float(std::log(mass_of_row(logits, row, peak)))
                                   : std::nanf("");
    }
  });
}

void draw(Team& team, const Logits& logits, const DrawCall& call) {
  const int64_t room = (logits.blocks() + W - 1) / W * W;
  team.pieces(call.selected.count, 1, [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    float* bounds = scratch.get<float>(room);
    for (int64_t i = first; i < last; i++) {
      const Winner winner = Race(logits, call, i).run(bounds);
      call.columns[i] = winner.column;
      call.scores[i] = winner.score;
    }
  });
}

}  // namespace toka
