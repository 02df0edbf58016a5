// See decode_step.h.
#include "decode_step.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "parallel.h"

namespace toka {
namespace {

int64_t element_size(Type type) { return type == Type::BFloat16 ? 2 : 4; }

}  // namespace

DecodeStep::DecodeStep(DecodeModel model) : model_(std::move(model)) {
  for (const StackLayer& layer : model_.stack.layers) {
    const auto found = std::find(windows_.begin(), windows_.end(), layer.window);
    kind_of_layer_.push_back(size_t(found - windows_.begin()));
    if (found == windows_.end()) windows_.push_back(layer.window);
  }
  plans_.resize(windows_.size());
}

void DecodeStep::run(const DecodeSlots& slots, const DecodeRows& rows, int32_t* tokens,
                     int threads) {
  if (rows.count == 0) return;
  check(slots, rows);
  model_.stack.threads = threads;
  expand(slots, rows);
  plan(rows);
  pass(rows.count);
  drawn_.resize(rows.count);
  for (int64_t first = 0; first < rows.count; first += model_.max_logits_rows) {
    const LinearCall logits = head(first, std::min(model_.max_logits_rows, rows.count - first));
    if (first > 0) linear(logits);
    sampler_.sample(static_cast<const float*>(logits.out), model_.vocab_size, logits.num_rows,
                    rows.slots + first, next_positions_.data() + first, slots.sampling,
                    drawn_.data() + first, threads);
  }
  for (int64_t row = 0; row < rows.count; row++) {
    tokens[row] = int32_t(drawn_[row]);
    slots.last_tokens[rows.slots[row]] = std::max<int64_t>(drawn_[row], 0);
  }
}

// A slot may be among the rows once.
void DecodeStep::check(const DecodeSlots& slots, const DecodeRows& rows) const {
  const int64_t room =
      std::min(slots.max_blocks * model_.stack.cache.page_size, model_.max_positions);
  for (int64_t row = 0; row < rows.count; row++)
    if (slots.kv_lens[rows.slots[row]] >= room)
      throw std::out_of_range("a row has no block, or the model no position, for its token");
}

void DecodeStep::expand(const DecodeSlots& slots, const DecodeRows& rows) {
  const int64_t page_size = model_.stack.cache.page_size;
  for (auto* column : {&ids_, &positions_, &next_positions_, &slot_mapping_})
    column->resize(rows.count);
  kv_lens_.resize(rows.count);
  query_lens_.assign(rows.count, 1);
  block_indptr_.assign(1, 0);
  block_ids_.clear();
  for (int64_t row = 0; row < rows.count; row++) {
    const int64_t slot = rows.slots[row], position = slots.kv_lens[slot]++;
    const int32_t* table = slots.block_tables + slot * slots.max_blocks;
    ids_[row] = slots.last_tokens[slot];
    positions_[row] = position;
    next_positions_[row] = position + 1;
    kv_lens_[row] = int32_t(position + 1);
    slot_mapping_[row] = int64_t(table[position / page_size]) * page_size + position % page_size;
    block_ids_.insert(block_ids_.end(), table, table + position / page_size + 1);
    block_indptr_.push_back(int32_t(block_ids_.size()));
  }
  StackCall& stack = model_.stack;
  stack.num_tokens = rows.count;
  stack.rotary.positions = positions_.data();
  stack.slot_mapping = slot_mapping_.data();
  stack.block_ids = block_ids_.data();
}

void DecodeStep::plan(const DecodeRows& rows) {
  StackCall& stack = model_.stack;
  PlanRequest request{};
  request.query_lens = query_lens_.data();
  request.kv_lens = kv_lens_.data();
  request.block_indptr = block_indptr_.data();
  request.num_rows = rows.count;
  request.groups = rows.groups;
  request.num_groups = rows.num_groups;
  request.cache = stack.cache;
  request.group_size = stack.num_heads / stack.cache.num_kv_heads;
  request.threads = stack.threads;
  for (size_t i = 0; i < windows_.size(); i++) {
    request.window = windows_[i];
    plans_[i] = plan_attention(request);
  }
  for (size_t i = 0; i < stack.layers.size(); i++) {
    StackLayer& layer = stack.layers[i];
    const Plan& plan = plans_[kind_of_layer_[i]];
    layer.items = plan.items.data();
    layer.num_items = int64_t(plan.items.size());
    layer.merges = plan.merges.data();
    layer.num_merges = int64_t(plan.merges.size());
    layer.parts = plan.parts.data();
    layer.partial_rows = plan.partial_rows;
  }
}

// From ids to the first part of the logits.
void DecodeStep::pass(int64_t num_rows) {
  StackCall& stack = model_.stack;
  stack.hidden = hidden_.get<char>(num_rows * stack.hidden_size * element_size(stack.cache.type));
  const LinearCall logits = head(0, std::min(model_.max_logits_rows, num_rows));
  const StackBuffers buffers = memory_.buffers(stack, linear_room(logits));
  parallel_region(stack.threads, [&](Team& team) {
    embed(team, num_rows);
    team.barrier();
    run_stack(team, stack, buffers, linear_ahead(team, logits));
    linear(team, logits, buffers.room);
  });
}

void DecodeStep::embed(Team& team, int64_t num_rows) {
  const StackCall& stack = model_.stack;
  const Type type = stack.cache.type;
  const int64_t bytes = stack.hidden_size * element_size(type);
  char* hidden = static_cast<char*>(stack.hidden);
  team.pieces(num_rows, 8, [&](int64_t first, int64_t last) {
    if (model_.embedding == nullptr) {
      packed_rows(model_.head, ids_.data() + first, last - first, stack.hidden_size, type,
                  model_.head_format, hidden + first * bytes, 1);
      return;
    }
    for (int64_t row = first; row < last; row++)
      std::memcpy(hidden + row * bytes,
                  static_cast<const char*>(model_.embedding) + ids_[row] * bytes, bytes);
  });
}

// Of these rows; the logits of other rows take the same memory.
LinearCall DecodeStep::head(int64_t first_row, int64_t num_rows) {
  const StackCall& stack = model_.stack;
  LinearCall head{};
  head.type = stack.cache.type;
  head.x = static_cast<const char*>(stack.hidden) +
           first_row * stack.hidden_size * element_size(head.type);
  head.x_stride = head.in_features = stack.hidden_size;
  head.norm_weight = model_.final_norm;
  head.norm_eps = stack.norm_eps;
  head.num_rows = num_rows;
  head.packed = model_.head;
  head.format = model_.head_format;
  head.out_type = Type::Float;
  head.out_features = head.out_stride = model_.vocab_size;
  head.out = logits_.get<float>(num_rows * model_.vocab_size);
  head.threads = stack.threads;
  return head;
}

}  // namespace toka
