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

struct PlainDraw {
  const float* logits;  // [count, vocab_size]
  int64_t vocab_size;
  int64_t count;
  const int64_t* slots;
  const int64_t* positions;  // of the drawn tokens
  SamplingColumns columns;
  int64_t* tokens;  // out; -1 where the largest logit is not finite
};

class PlainSampler {
 public:
  // From then on `prepare` allocates nothing for up to so many rows.
  void reserve(int64_t num_rows, int64_t vocab_size);
  // By one thread, before `sample`: everything that does not depend on the logits.
  void prepare(const PlainDraw& draw);
  // By all threads of a region. The first one has the tokens then, the others after a barrier.
  void sample(Team& team);

 private:
  void prepare_random();
  void prepare_cuts();
  void raise_thresholds();
  void finish();

  PlainDraw draw_;
  Logits logits_;
  // Kept between calls, so that steady states don't allocate.
  std::vector<float> maxima_, peaks_;
  // Of the rows that don't just take their best token.
  std::vector<int64_t> rows_, keys_, drawn_;
  std::vector<float> temperature_, peak_, threshold_, scores_;
  // Of the rows that top-k or top-p cut: places among those above, and what is asked of each.
  std::vector<int64_t> places_, cut_rows_, top_k_;
  std::vector<float> cut_temperature_, top_p_, smallest_;
};

}  // namespace toka
