// A token per row of logits, as temperature, top-k, top-p and min-p say: sampling of rows that ask
// for no log-probabilities and whose logits are the model's own.
#pragma once

#include <vector>

#include "sampling.h"

namespace toka {

// Parameters with an element per slot; meanings as in model/sampling/sampler.py.
struct SamplingColumns {
  const float *temperature, *top_p, *min_p;
  const int32_t* top_k;
  const int64_t* seeds;
};

class PlainSampler {
 public:
  // tokens[row] for `count` rows of the slots, drawn at these positions; -1 where the largest logit
  // is not finite.
  void sample(const float* logits, int64_t vocab_size, int64_t count, const int64_t* slots,
              const int64_t* positions, const SamplingColumns& columns, int64_t* tokens,
              int threads);

 private:
  void draw_random(const Logits& logits, const int64_t* slots, const int64_t* positions,
                   const SamplingColumns& columns, int64_t* tokens, int threads);
  void raise_thresholds(const Logits& logits, const int64_t* slots, const SamplingColumns& columns,
                        int threads);

  // Kept between calls, so that steady states don't allocate.
  std::vector<float> maxima_, temperature_, peak_, threshold_, scores_;
  std::vector<int64_t> rows_, keys_, drawn_;
  // Of the rows that top-k or top-p cut: places among those above, and what is asked of each.
  std::vector<int64_t> places_, cut_rows_, top_k_;
  std::vector<float> cut_temperature_, top_p_, smallest_;
};

}  // namespace toka
