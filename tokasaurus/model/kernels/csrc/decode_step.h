// Whole decode steps in one call: from the slots' last tokens to their next ones, pass after pass.
//
// All passes are one parallel region: what lies between two of them is one thread's work; the
// others wait and, where a row or two decode, read ahead of the first layer.
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
  const int32_t* num_blocks;  // of each table, that the slot has
  int64_t* kv_lens;      // a pass adds 1
  int64_t* last_tokens;  // what a pass runs, then what it drew
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

// How often a step is repeated: after each pass what it drew, a descriptor and the clock are looked
// at.
struct DecodePasses {
  int64_t most;
  const int32_t* stop_tokens;  // a pass that draws one of these, or none for a row, is the last
  int64_t num_stop_tokens;
  // So is one after which this can be read, if it isn't negative.
  int descriptor;
  double max_seconds;  // and one that ends so long after the call began, or later
};

class DecodeStep {
 public:
  explicit DecodeStep(DecodeModel model);

  // Returns how many passes ran. Writes what each drew to tokens[passes][rows], -1 for rows whose
  // largest logit is not finite; they go on with token 0. Throws out_of_range before a pass if a
  // row's token has no room; that pass has changed nothing then.
  int64_t run(const DecodeSlots& slots, const DecodeRows& rows, const DecodePasses& passes,
              int32_t* tokens, int threads);

 private:
  struct Run;

  void begin_pass(Run& run);
  bool end_pass(Run& run);
  void check(const DecodeSlots& slots, const DecodeRows& rows) const;
  void expand(const DecodeSlots& slots, const DecodeRows& rows);
  void plan(const DecodeRows& rows);
  void prepare_draw(const Run& run, int64_t first_row);
  void pass(Team& team, const Run& run);
  void embed(Team& team, int64_t num_rows);
  LinearCall head(int64_t first_row, int64_t num_rows) const;

  DecodeModel model_;
  std::vector<int64_t> windows_;       // distinct ones
  std::vector<size_t> kind_of_layer_;  // index of the layer's window
  std::vector<Plan> plans_;            // one per window
  PlainSampler sampler_;
  StackMemory memory_;
  StackBuffers buffers_;
  Scratch hidden_, logits_memory_;
  float* logits_ = nullptr;
  std::vector<int64_t> ids_, positions_, next_positions_, slot_mapping_, drawn_;
  std::vector<int32_t> query_lens_, kv_lens_, block_indptr_, block_ids_;
};

}  // namespace toka
