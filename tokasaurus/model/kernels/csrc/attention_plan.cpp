// How one step's attention is cut into items, and which partial results belong together afterwards.
//
// Work is divided by rows, then by ranges of keys, then by KV heads: all heads of a block lie
// together, and memory is fastest when it is read in long runs.
#include <algorithm>

#include "attention.h"

namespace toka {
namespace {

constexpr int64_t ROWS_PER_ITEM = 72;   // query rows (tokens x heads of a group) of a dense item
constexpr int64_t STREAMED_ROWS = 8;    // up to so many of a KV head, memory decides
constexpr int64_t RUN_BYTES = 384;      // of keys per token that an item reads together, if it can
constexpr int64_t MIN_SPLIT = 64;       // keys below which a range is not split
constexpr int64_t KEY_COST = 6;         // loading a key costs about as much as this many rows
constexpr int64_t ITEMS_PER_THREAD = 4;
// Cost per thread of a single range, up to which parts are equal, one per thread where heads allow
// it: more parts cost more than they help.
constexpr int64_t SHORT_WORK = 8192;

struct Range {
  int64_t token0, num_tokens, kv_begin, kv_end, position0, block_offset;
  bool is_partial;  // other ranges add to the same tokens
};

class Planner {
 public:
  explicit Planner(const PlanRequest& request) : r_(request) {
    tokens_per_item_ = std::max<int64_t>(1, ROWS_PER_ITEM / r_.group_size);
  }

  Plan build() {
    collect();
    int64_t total = 0;
    for (const Range& range : ranges_) {
      total += cost(range, heads());
      num_splits_ += (range.kv_end - range.kv_begin) / MIN_SPLIT;
    }
    const bool is_short = ranges_.size() == 1 && total <= r_.threads * SHORT_WORK;
    items_per_thread_ = is_short && divides_equally(ranges_.front()) ? 1 : ITEMS_PER_THREAD;
    const int64_t items = r_.threads * items_per_thread_;
    target_ = std::max<int64_t>((total + items - 1) / items, 1);
    for (const Range& range : ranges_) emit(range);
    for (size_t i = 0; i < parts_of_.size(); i++) {
      if (parts_of_[i].empty()) continue;
      plan_.merges.push_back({int32_t(i / heads()), int32_t(i % heads()),
                              int32_t(plan_.parts.size()), int32_t(parts_of_[i].size())});
      plan_.parts.insert(plan_.parts.end(), parts_of_[i].begin(), parts_of_[i].end());
    }
    std::stable_sort(plan_.items.begin(), plan_.items.end(), [&](const Item& a, const Item& b) {
      return item_cost(a) > item_cost(b);
    });
    return std::move(plan_);
  }

 private:
  void collect() {
    std::vector<int64_t> shared_blocks(r_.num_rows, 0);
    int64_t first_decode_token = 0;
    for (int64_t row = 0; row < r_.num_prefill_rows; row++) first_decode_token += r_.query_lens[row];
    for (int64_t g = 0; g < r_.num_groups; g++) {
      const int32_t* group = r_.groups + 3 * g;
      const int64_t first_row = r_.num_prefill_rows + group[0];
      if (group[2] == 0 || !everyone_sees_all(first_row, group[1])) continue;
      for (int64_t i = 0; i < group[1]; i += tokens_per_item_)
        ranges_.push_back({first_decode_token + group[0] + i,
                           std::min<int64_t>(tokens_per_item_, group[1] - i), 0,
                           group[2] * r_.cache.page_size, -1, r_.block_indptr[first_row], true});
      for (int64_t i = 0; i < group[1]; i++) shared_blocks[first_row + i] = group[2];
    }
    int64_t token = 0;
    for (int64_t row = 0; row < r_.num_rows; row++) {
      const int64_t shared = shared_blocks[row] * r_.cache.page_size;
      const int64_t start = r_.kv_lens[row] - r_.query_lens[row];
      plan_.items_append &= r_.query_lens[row] == 1 && shared <= start;
      for (int64_t i = 0; i < r_.query_lens[row]; i += tokens_per_item_) {
        const int64_t count = std::min<int64_t>(tokens_per_item_, r_.query_lens[row] - i);
        int64_t begin = shared;
        if (r_.window > 0) begin = std::max<int64_t>(begin, start + i - r_.window + 1);
        begin = begin / r_.cache.page_size * r_.cache.page_size;
        ranges_.push_back({token + i, count, begin, start + i + count, start + i,
                           r_.block_indptr[row], shared > 0});
      }
      token += r_.query_lens[row];
    }
    parts_of_.resize(token * heads());
  }

  // A window that cuts the shared prefix cuts it differently for every row: no group then.
  bool everyone_sees_all(int64_t first_row, int64_t rows) const {
    if (r_.window == 0) return true;
    for (int64_t i = 0; i < rows; i++)
      if (r_.kv_lens[first_row + i] > r_.window) return false;
    return true;
  }

  int64_t heads() const { return r_.cache.num_kv_heads; }

  int64_t heads_of_a_run() const {
    const int64_t bytes = r_.cache.head_dim * (r_.cache.type == Type::BFloat16 ? 2 : 4);
    return std::clamp<int64_t>(RUN_BYTES / bytes, 1, heads());
  }

  // How many heads of a range an item takes together: several, where few rows attend, if threads
  // have enough to do when only keys are divided.
  int64_t heads_together(const Range& range, int64_t items_per_thread) const {
    if (range.num_tokens * r_.group_size > STREAMED_ROWS) return 1;
    return num_splits_ >= r_.threads * items_per_thread ? heads_of_a_run() : 1;
  }

  // Whether one part per thread, or the same number of parts for each, cuts the range equally.
  bool divides_equally(const Range& range) const {
    const int64_t together = heads_together(range, 1), groups = heads() / together;
    return heads() % together == 0 && (groups % r_.threads == 0 || r_.threads % groups == 0);
  }

  int64_t cost(int64_t keys, int64_t num_tokens, int64_t num_heads) const {
    return keys * (num_tokens * r_.group_size + KEY_COST) * num_heads;
  }

  int64_t cost(const Range& range, int64_t num_heads) const {
    return cost(range.kv_end - range.kv_begin, range.num_tokens, num_heads);
  }

  int64_t item_cost(const Item& item) const {
    return cost(item.kv_end - item.kv_begin, item.num_tokens, item.num_kv_heads);
  }

  void emit(const Range& range) {
    const int64_t keys = range.kv_end - range.kv_begin;
    if (keys <= 0) return;
    const int64_t page = r_.cache.page_size;
    const int64_t together = heads_together(range, items_per_thread_);
    int64_t splits = (cost(range, together) + target_ - 1) / target_;
    splits = std::max<int64_t>(1, std::min(splits, keys / MIN_SPLIT));
    const int64_t unit =
        items_per_thread_ == 1 ? page : std::max<int64_t>(page, MIN_SPLIT / page * page);
    const int64_t most = round_up((keys + splits - 1) / splits, unit);
    const bool partial = range.is_partial || most < keys;
    for (int64_t begin = range.kv_begin; begin < range.kv_end;) {
      // The last ones are smaller, so that all threads end together.
      const int64_t rest = range.kv_end - begin;
      const int64_t span = items_per_thread_ == 1
                               ? most
                               : std::min(most, round_up(rest / (2 * r_.threads) + 1, unit));
      const int64_t end = splits == 1 ? range.kv_end : std::min(begin + span, range.kv_end);
      for (int64_t head = 0; head < heads(); head += together)
        emit_item(range, begin, end, head, std::min(together, heads() - head), partial);
      begin = end;
    }
  }

  void emit_item(const Range& range, int64_t begin, int64_t end, int64_t head, int64_t num_heads,
                 bool partial) {
    const int64_t rows = range.num_tokens * r_.group_size;
    const int64_t partial_row = partial ? plan_.partial_rows : -1;
    if (partial) {
      for (int64_t i = 0; i < range.num_tokens; i++)
        for (int64_t h = 0; h < num_heads; h++)
          parts_of_[(range.token0 + i) * heads() + head + h].push_back(
              int32_t(partial_row + h * rows + i * r_.group_size));
      plan_.partial_rows += num_heads * rows;
    }
    plan_.items.push_back({int32_t(range.token0), int32_t(range.num_tokens), int32_t(head),
                           int32_t(num_heads), int32_t(begin), int32_t(end),
                           int32_t(range.position0), int32_t(range.block_offset),
                           int32_t(partial_row)});
  }

  static int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

  const PlanRequest& r_;
  int64_t tokens_per_item_, items_per_thread_ = 1, target_ = 1;
  int64_t num_splits_ = 0;  // that the keys of all ranges have room for
  std::vector<Range> ranges_;
  std::vector<std::vector<int32_t>> parts_of_;  // per token and KV head
  Plan plan_;
};

}  // namespace

Plan plan_attention(const PlanRequest& request) { return Planner(request).build(); }

}  // namespace toka
