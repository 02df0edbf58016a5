// How one step's attention is cut into items of similar work, and which partial results belong
// together afterwards.
#include <algorithm>

#include "attention.h"

namespace toka {
namespace {

constexpr int64_t ROWS_PER_ITEM = 72;   // query rows (tokens x heads of a group) of a dense item
constexpr int64_t MIN_SPLIT = 64;       // keys below which a range is not split
constexpr int64_t KEY_COST = 6;         // loading a key costs about as much as this many rows
constexpr int64_t ITEMS_PER_THREAD = 4;

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
    for (const Range& range : ranges_) total += cost(range) * r_.num_kv_heads;
    target_ = std::max<int64_t>(total / (r_.threads * ITEMS_PER_THREAD), 1);
    for (const Range& range : ranges_) emit(range);
    for (size_t i = 0; i < parts_of_.size(); i++) {
      if (parts_of_[i].empty()) continue;
      plan_.merges.push_back({int32_t(i / r_.num_kv_heads), int32_t(i % r_.num_kv_heads),
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
                           group[2] * r_.page_size, -1, r_.block_indptr[first_row], true});
      for (int64_t i = 0; i < group[1]; i++) shared_blocks[first_row + i] = group[2];
    }
    int64_t token = 0;
    for (int64_t row = 0; row < r_.num_rows; row++) {
      const int64_t shared = shared_blocks[row] * r_.page_size;
      const int64_t start = r_.kv_lens[row] - r_.query_lens[row];
      for (int64_t i = 0; i < r_.query_lens[row]; i += tokens_per_item_) {
        const int64_t count = std::min<int64_t>(tokens_per_item_, r_.query_lens[row] - i);
        int64_t begin = shared;
        if (r_.window > 0) begin = std::max<int64_t>(begin, start + i - r_.window + 1);
        begin = begin / r_.page_size * r_.page_size;
        ranges_.push_back({token + i, count, begin, start + i + count, start + i,
                           r_.block_indptr[row], shared > 0});
      }
      token += r_.query_lens[row];
    }
    parts_of_.resize(token * r_.num_kv_heads);
  }

  // A window that cuts the shared prefix cuts it differently for every row: no group then.
  bool everyone_sees_all(int64_t first_row, int64_t rows) const {
    if (r_.window == 0) return true;
    for (int64_t i = 0; i < rows; i++)
      if (r_.kv_lens[first_row + i] > r_.window) return false;
    return true;
  }

  int64_t cost(const Range& range) const {
    return (range.kv_end - range.kv_begin) * (range.num_tokens * r_.group_size + KEY_COST);
  }

  int64_t item_cost(const Item& item) const {
    return int64_t(item.kv_end - item.kv_begin) * (item.num_tokens * r_.group_size + KEY_COST);
  }

  void emit(const Range& range) {
    const int64_t keys = range.kv_end - range.kv_begin;
    if (keys <= 0) return;
    int64_t splits = (cost(range) + target_ - 1) / target_;
    splits = std::max<int64_t>(1, std::min(splits, keys / MIN_SPLIT));
    const int64_t unit = std::max<int64_t>(r_.page_size, MIN_SPLIT / r_.page_size * r_.page_size);
    const int64_t span = ((keys + splits - 1) / splits + unit - 1) / unit * unit;
    const bool partial = range.is_partial || span < keys;
    for (int64_t begin = range.kv_begin; begin < range.kv_end; begin += span)
      for (int64_t head = 0; head < r_.num_kv_heads; head++) {
        int64_t partial_row = -1;
        if (partial) {
          partial_row = plan_.partial_rows;
          plan_.partial_rows += range.num_tokens * r_.group_size;
          for (int64_t i = 0; i < range.num_tokens; i++)
            parts_of_[(range.token0 + i) * r_.num_kv_heads + head].push_back(
                int32_t(partial_row + i * r_.group_size));
        }
        plan_.items.push_back({int32_t(range.token0), int32_t(range.num_tokens), int32_t(head),
                               int32_t(begin), int32_t(std::min(begin + span, range.kv_end)),
                               int32_t(range.position0), int32_t(range.block_offset),
                               int32_t(partial_row)});
      }
  }

  const PlanRequest& r_;
  int64_t tokens_per_item_, target_ = 1;
  std::vector<Range> ranges_;
  std::vector<std::vector<int32_t>> parts_of_;  // per token and KV head
  Plan plan_;
};

}  // namespace

Plan plan_attention(const PlanRequest& request) { return Planner(request).build(); }

}  // namespace toka
