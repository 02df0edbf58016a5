// See decode_step.h.
#include "decode_step.h"

#include <poll.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "parallel.h"

namespace toka {
namespace {

int64_t element_size(Type type) { return type == Type::BFloat16 ? 2 : 4; }

bool has_news(int descriptor) {
  pollfd entry{descriptor, POLLIN, 0};
  return descriptor >= 0 && poll(&entry, 1, 0) != 0;
}

}  // namespace

DecodeStep::DecodeStep(DecodeModel model) : model_(std::move(model)) {
  for (const StackLayer& layer : model_.stack.layers) {
    const auto found = std::find(windows_.begin(), windows_.end(), layer.window);
    kind_of_layer_.push_back(size_t(found - windows_.begin()));
    if (found == windows_.end()) windows_.push_back(layer.window);
  }
  plans_.resize(windows_.size());
}

// What one call is about.
struct DecodeStep::Run {
  const DecodeSlots& slots;
  const DecodeRows& rows;
  const DecodePasses& passes;
  int32_t* tokens;
  std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
  int64_t num_passes = 0;
  bool is_running = false;  // a pass has not been ended yet
  bool goes_on = true;
  std::exception_ptr failure = nullptr;
};

int64_t DecodeStep::run(const DecodeSlots& slots, const DecodeRows& rows,
                        const DecodePasses& passes, int32_t* tokens, int threads) {
  if (rows.count == 0 || passes.most <= 0) return 0;
  Run run{slots, rows, passes, tokens};
  StackCall& stack = model_.stack;
  stack.threads = threads;
  stack.num_tokens = rows.count;
  // Here, as the region's other threads read where it is as soon as they begin.
  stack.hidden = hidden_.get<char>(rows.count * stack.hidden_size * element_size(stack.cache.type));
  parallel_region(threads, [&](Team& team) {
    team.read_ahead(stack_ahead(team, stack));
    for (;;) {
      if (team.rank() == 0) begin_pass(run);
      team.barrier();
      if (!run.goes_on) return;
      pass(team, run);
    }
  });
  if (run.failure != nullptr) std::rethrow_exception(run.failure);
  return run.num_passes;
}

// What lies between two passes, by one thread of the region, which no exception may leave.
void DecodeStep::begin_pass(Run& run) {
  try {
    if (run.is_running) run.goes_on = end_pass(run);
    if (!run.goes_on) return;
    check(run.slots, run.rows);
    expand(run.slots, run.rows);
    plan(run.rows);
    StackCall& stack = model_.stack;
    const int64_t count = run.rows.count, part = std::min(model_.max_logits_rows, count);
    logits_ = logits_memory_.get<float>(part * model_.vocab_size);
    buffers_ = memory_.buffers(stack, linear_room(head(0, part)));
    drawn_.resize(count);
    sampler_.reserve(part, model_.vocab_size);  // other parts are prepared where nothing may throw
    prepare_draw(run, 0);
    run.is_running = true;
  } catch (...) {
    run.failure = std::current_exception();
    run.goes_on = false;
  }
}

// Hands out what was drawn; whether there is to be another pass.
bool DecodeStep::end_pass(Run& run) {
  const DecodePasses& passes = run.passes;
  const int64_t count = run.rows.count;
  const int32_t* stops_end = passes.stop_tokens + passes.num_stop_tokens;
  int32_t* tokens = run.tokens + run.num_passes * count;
  bool stops = false;
  for (int64_t row = 0; row < count; row++) {
    tokens[row] = int32_t(drawn_[row]);
    run.slots.last_tokens[run.rows.slots[row]] = std::max<int64_t>(drawn_[row], 0);
    stops |= tokens[row] < 0 || std::binary_search(passes.stop_tokens, stops_end, tokens[row]);
  }
  run.num_passes++;
  return !stops && run.num_passes < passes.most && !has_news(passes.descriptor) &&
         std::chrono::steady_clock::now() - run.began <
             std::chrono::duration<double>(passes.max_seconds);
}

// A slot may be among the rows once.
void DecodeStep::check(const DecodeSlots& slots, const DecodeRows& rows) const {
  const int64_t page_size = model_.stack.cache.page_size;
  for (int64_t row = 0; row < rows.count; row++) {
    const int64_t slot = rows.slots[row];
    if (slots.kv_lens[slot] >= std::min(slots.num_blocks[slot] * page_size, model_.max_positions))
      throw std::out_of_range("a row has no block, or the model no position, for its token");
  }
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
    layer.items_append = plan.items_append;
  }
}

// Of one part of the rows.
void DecodeStep::prepare_draw(const Run& run, int64_t first_row) {
  PlainDraw draw{};
  draw.logits = logits_;
  draw.vocab_size = model_.vocab_size;
  draw.count = std::min(model_.max_logits_rows, run.rows.count - first_row);
  draw.slots = run.rows.slots + first_row;
  draw.positions = next_positions_.data() + first_row;
  draw.columns = run.slots.sampling;
  draw.tokens = drawn_.data() + first_row;
  sampler_.prepare(draw);
}

// From ids to drawn tokens.
void DecodeStep::pass(Team& team, const Run& run) {
  const StackCall& stack = model_.stack;
  const int64_t count = run.rows.count, most = model_.max_logits_rows;
  embed(team, count);
  team.barrier();
  run_stack(team, stack, buffers_, linear_ahead(team, head(0, std::min(most, count))));
  for (int64_t first = 0; first < count; first += most) {
    if (first > 0) {
      if (team.rank() == 0) prepare_draw(run, first);
      team.barrier();
    }
    linear(team, head(first, std::min(most, count - first)), buffers_.room);
    team.read_ahead(stack_ahead(team, stack));
    team.barrier();
    sampler_.sample(team);
  }
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
LinearCall DecodeStep::head(int64_t first_row, int64_t num_rows) const {
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
  head.out = logits_;
  return head;
}

}  // namespace toka
