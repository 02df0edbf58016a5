// A whole decode step in one call: from the slots' last tokens to their next ones.
//
// Everything that steps share is kept: the model's pointers, buffers, the expanded block tables.
// What a step costs beside its passes over the weights is what its rows cost.
#pragma once

#include <vector>

#include "plain_sampling.h"
#include "stack.h"

namespace toka {

// The worker's slots: arrays with an element per slot. Python fills one in.
struct DecodeSlots {
  const int32_t* block_tables;  // [slots, max_blocks]
  int64_t max_blocks;
  int64_t* kv_lens;      // a step adds 1
  int64_t* last_tokens;  // what a step runs, then what it drew
  SamplingColumns sampling;
};

struct DecodeRows {
  const int64_t* slots;
  int64_t count;
  const int32_t* groups;  // [num_groups][3]: first row, rows, blocks
  int64_t num_groups;
};

struct DecodeModel {
  StackCall stack;        // without what a step brings, and without a final norm
  const float* final_norm;
  const void* embedding;  // [vocab_size, hidden_size]; null: the rows of the head's weight
  const void* head;       // packed
  Format head_format;
  int64_t vocab_size;
  int64_t max_logits_rows;  // more are drawn one part after the other
  int64_t max_positions;    // rows of the rotary table
};

class DecodeStep {
 public:
  explicit DecodeStep(DecodeModel model);

  // Writes the drawn tokens, -1 for rows whose largest logit is not finite; they go on with token
  // 0. Throws out_of_range, having changed nothing, if a row's token has no room.
  void run(const DecodeSlots& slots, const DecodeRows& rows, int32_t* tokens, int threads);

 private:
  void check(const DecodeSlots& slots, const DecodeRows& rows) const;
  void expand(const DecodeSlots& slots, const DecodeRows& rows);
  void plan(const DecodeRows& rows);
  void pass(int64_t num_rows);
  void embed(Team& team, int64_t num_rows);
  LinearCall head(int64_t first_row, int64_t num_rows);

  DecodeModel model_;
  std::vector<int64_t> windows_;       // distinct ones
  std::vector<size_t> kind_of_layer_;  // index of the layer's window
  std::vector<Plan> plans_;            // one per window
  PlainSampler sampler_;
  StackMemory memory_;
  Scratch hidden_, logits_;
  std::vector<int64_t> ids_, positions_, next_positions_, slot_mapping_, drawn_;
  std::vector<int32_t> query_lens_, kv_lens_, block_indptr_, block_ids_;
};

}  // namespace toka
