// Drawing tokens from logits of float32, [rows, V], seen as blocks of 64 columns.
//
// The definitions are those of model/sampling: noise.py for the arrivals, thresholds.py for what
// top-k and top-p keep. Nothing sorts the vocabulary: the blocks' maxima say where to look.
#pragma once

#include <cstdint>

#include "team.h"

namespace toka {

constexpr int64_t SAMPLING_BLOCK = 64;

struct Logits {
  const float* data;
  const float* maxima;  // [rows, blocks()], NaN where a block holds one
  int64_t num_columns;

  int64_t blocks() const { return (num_columns + SAMPLING_BLOCK - 1) / SAMPLING_BLOCK; }
  const float* row(int64_t r) const { return data + r * num_columns; }
  const float* row_maxima(int64_t r) const { return maxima + r * blocks(); }
  int64_t block_size(int64_t block) const {
    const int64_t rest = num_columns - block * SAMPLING_BLOCK;
    return rest < SAMPLING_BLOCK ? rest : SAMPLING_BLOCK;
  }
};

// What the parameters of each of `count` selected rows are read from.
struct SelectedRows {
  const int64_t* rows;
  int64_t count;
  const float* temperature;
};

// NaN if one of them is.
float maximum_of(const float* x, int64_t count);

// What takes a team is a part of its region: all threads call it, and results are whole after a
// barrier that follows.

// How many pieces `block_maxima` and `best_columns` divide their work into.
int64_t maxima_pieces(const Logits& logits, int64_t num_rows);
int64_t best_pieces(int64_t num_rows);

// maxima[row, block] of `num_rows` rows.
void block_maxima(Team& team, const Logits& logits, int64_t num_rows, float* maxima);

// The lowest column among each row's largest logits, 0 for rows with a NaN, and the largest logit,
// unless `peaks` is null.
void best_columns(Team& team, const Logits& logits, int64_t num_rows, int64_t* columns,
                  float* peaks);

// -1 in place of the columns of rows whose largest logit is not finite.
void mark_broken_rows(const Logits& logits, int64_t num_rows, int64_t* columns);

// log-sum-exp of the selected rows; NaN where the largest logit is not finite.
void log_normalizers(Team& team, const Logits& logits, const SelectedRows& selected, float* out);

// The smallest logit that top_k (1..V) and top_p leave; -inf where they keep all.
void truncation_thresholds(Team& team, const Logits& logits, const SelectedRows& selected,
                           const int64_t* top_k, const float* top_p, float* out);

struct DrawCall {
  SelectedRows selected;
  const int64_t* keys;     // [count, 2]: halves of each row's 64-bit key
  const float* peak;       // the largest logit of the whole row
  const float* threshold;  // the smallest (logit - peak) / temperature that may be drawn
  int64_t vocab_size;      // of the whole vocabulary, of which column 0 is a block's first token
  int64_t first_block;
  int64_t* columns;
  float* scores;
};

// The winners of the race and their scores; column 0 and -inf where there is none.
void draw(Team& team, const Logits& logits, const DrawCall& call);

}  // namespace toka
