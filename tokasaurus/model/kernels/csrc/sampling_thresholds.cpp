// What top-k and top-p keep, as one threshold per row, by selection among few candidates.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sampling.h"
#include "scratch.h"
#include "simd.h"

namespace toka {
namespace {

// Some of a row's logits, with room for all of them and for W more.
class Candidates {
 public:
  Candidates(const Logits& logits, int64_t row, Scratch& scratch)
      : logits_(logits), row_(row),
        memory_(scratch.get<float>(2 * size_t(logits.num_columns + W))) {}

  float* values() { return memory_; }
  float* weights() { return memory_ + logits_.num_columns + W; }
  int64_t count() const { return count_; }
  void clear() { count_ = 0; }

  // Without a branch, which nothing could predict.
  TOKA_INLINE void append_if(float value, bool wanted) {
    memory_[count_] = value;
    count_ += wanted;
  }

  void collect(float least) {
    const float* maxima = logits_.row_maxima(row_);
    clear();
    for (int64_t b = 0; b < logits_.blocks(); b++) {
      if (!(maxima[b] >= least)) continue;
      const float* x = logits_.row(row_) + b * SAMPLING_BLOCK;
      const int64_t size = logits_.block_size(b);
      for (int64_t i = 0; i < size; i++) append_if(x[i], x[i] >= least);
    }
  }

  // exp((value - peak) / temperature) of each, and their sum.
  double weigh(float peak, float temperature) {
    double mass = 0;
    for (int64_t i = 0; i < count_; i += W) {
      const int64_t here = std::min<int64_t>(W, count_ - i);
      for (int64_t j = here; j < W; j++) memory_[i + j] = NEG_INF;
      const F weight = vexp((load(memory_ + i) - peak) / temperature);
      store(weights() + i, weight);
      mass += reduce_add(weight);
    }
    return mass;
  }

  // The k-th largest of the row, ties counted; all that is at least as large is collected.
  float collect_largest(int64_t k) {
    collect(likely_below(k));
    if (count_ < k) collect(NEG_INF);
    const float kth = largest(k, count_);
    count_ = std::partition(memory_, memory_ + count_, [&](float x) { return x >= kth; }) - memory_;
    return kth;
  }

  // The smallest value v for which the weights of all larger ones sum to less than `enough`:
  // quickselect by weight. There must be a candidate; the largest always qualifies.
  float last_inside(double enough) {
    int64_t first = 0, last = count_;
    double before = 0;
    for (;;) {
      const float pivot = median(values()[first], values()[(first + last) / 2], values()[last - 1]);
      int64_t larger_end = first, smaller_start = last;
      double larger = 0, equal = 0;
      for (int64_t i = first; i < smaller_start;) {
        const float value = values()[i], weight = weights()[i];
        if (value > pivot) {
          larger += weight;
          swap(i++, larger_end++);
        } else if (value < pivot) {
          swap(i, --smaller_start);
        } else {
          equal += weight;
          i++;
        }
      }
      if (larger_end > first && before + larger >= enough) {
        last = larger_end;
        continue;
      }
      before += larger + equal;
      if (before >= enough || smaller_start == last) return pivot;
      first = smaller_start;
    }
  }

 private:
  static constexpr int64_t SAMPLES = 1024;

  float largest(int64_t k, int64_t count) {
    std::nth_element(memory_, memory_ + k - 1, memory_ + count, std::greater<float>());
    return memory_[k - 1];
  }

  // A value that at least k logits reach (nearly always), and few more than that: the k-th largest
  // of the blocks' maxima, or where there are fewer blocks, what evenly spaced samples suggest.
  float likely_below(int64_t k) {
    const int64_t blocks = logits_.blocks(), columns = logits_.num_columns;
    if (k <= blocks) {
      std::copy_n(logits_.row_maxima(row_), blocks, memory_);
      return largest(k, blocks);
    }
    const int64_t stride = columns / SAMPLES;
    const int64_t rank = stride < 2 ? SAMPLES : k * SAMPLES / columns * 5 / 4 + 16;
    if (rank >= SAMPLES) return NEG_INF;
    for (int64_t i = 0; i < SAMPLES; i++) memory_[i] = logits_.row(row_)[i * stride];
    return largest(rank, SAMPLES);
  }

  static float median(float a, float b, float c) {
    return std::max(std::min(a, b), std::min(std::max(a, b), c));
  }
  void swap(int64_t i, int64_t j) {
    std::swap(values()[i], values()[j]);
    std::swap(weights()[i], weights()[j]);
  }

  const Logits& logits_;
  const int64_t row_;
  float* const memory_;
  int64_t count_ = 0;
};

// A row's mass by depth, the distance from the peak in units of the temperature.
class MassHistogram {
 public:
  MassHistogram(const Logits& logits, int64_t row, float peak, float temperature)
      : logits_(logits), row_(row), peak_(peak), temperature_(temperature) {}

  // Fills the bins; blocks that begin below `limit` are only counted in the whole mass, so that
  // bins beyond it are incomplete. Most blocks of a language model's logits do.
  void fill(float limit) {
    for (double& bin : bins_) bin = 0;
    mass_ = 0;
    const float* maxima = logits_.row_maxima(row_);
    for (int64_t b = 0; b < logits_.blocks(); b++) {
      const float least_depth = (peak_ - maxima[b]) / temperature_;
      if (least_depth > 87.0f) continue;  // vexp's zero
      if (least_depth > limit)
        mass_ += mass_of_block(b);
      else
        fill_from_block(b);
    }
    for (int bin = 0; bin < NUM_BINS; bin++) {
      bins_[bin] += bins_[NUM_BINS + bin];
      mass_ += bins_[bin];
    }
  }

  double mass() const { return mass_; }

  // The bin at whose end the sum reaches `enough`, and the sum before it.
  int edge(double enough, double& before) const {
    before = 0;
    for (int bin = 0; bin < NUM_BINS - 1; bin++) {
      if (before + bins_[bin] >= enough) return bin;
      before += bins_[bin];
    }
    return NUM_BINS - 1;
  }

  static int bins_above(float limit) { return int(limit * BINS_PER_NAT); }

  void collect_bin(int bin, Candidates& candidates) const {
    candidates.clear();
    const float* maxima = logits_.row_maxima(row_);
    for (int64_t b = 0; b < logits_.blocks(); b++) {
      if (bins_of(splat(maxima[b]))[0] > bin) continue;
      for (int64_t i = 0; i < SAMPLING_BLOCK; i += W) {
        const F values = load_some(b, i);
        const I bins = bins_of(values);
        for (int j = 0; j < W; j++) candidates.append_if(values[j], bins[j] == bin);
      }
    }
  }

 private:
  // The last one holds all that is deeper than 32.
  static constexpr int BINS_PER_NAT = 32, NUM_BINS = 1024;

  F load_some(int64_t block, int64_t start) const {
    const float* x = logits_.row(row_) + block * SAMPLING_BLOCK + start;
    const int64_t here = logits_.block_size(block) - start;
    if (here >= W) return load(x);
    F values = splat(NEG_INF);
    for (int64_t j = 0; j < here; j++) values[j] = x[j];
    return values;
  }

  F scaled(F values) const { return (values - peak_) / temperature_; }

  I bins_of(F values) const {
    return __builtin_convertvector(vmin(-scaled(values) * float(BINS_PER_NAT),
                                        splat(float(NUM_BINS - 1))), I);
  }

  float mass_of_block(int64_t block) const {
    F sum{};
    for (int64_t i = 0; i < SAMPLING_BLOCK; i += W) sum += vexp(scaled(load_some(block, i)));
    return reduce_add(sum);
  }

  // Neighbours go to different halves: sums into one bin would wait for each other.
  void fill_from_block(int64_t block) {
    for (int64_t i = 0; i < SAMPLING_BLOCK; i += W) {
      const F values = load_some(block, i);
      const F weights = vexp(scaled(values));
      const I bins = bins_of(values);
      for (int j = 0; j < W; j++) bins_[bins[j] + (j % 2) * NUM_BINS] += weights[j];
    }
  }

  const Logits& logits_;
  const int64_t row_;
  const float peak_, temperature_;
  double bins_[2 * NUM_BINS];
  double mass_ = 0;
};

// top-p over the whole row.
float nucleus_threshold(const Logits& logits, int64_t row, float peak, float temperature,
                        float top_p, Candidates& candidates) {
  constexpr float LIKELY_DEPTH = 10;
  MassHistogram histogram(logits, row, peak, temperature);
  histogram.fill(LIKELY_DEPTH);
  double before = 0, enough = histogram.mass() * double(top_p);
  int bin = histogram.edge(enough, before);
  if (bin >= MassHistogram::bins_above(LIKELY_DEPTH)) {
    histogram.fill(std::numeric_limits<float>::infinity());
    enough = histogram.mass() * double(top_p);
    bin = histogram.edge(enough, before);
  }
  histogram.collect_bin(bin, candidates);
  if (candidates.count() == 0) return NEG_INF;  // all of the mass is needed
  candidates.weigh(peak, temperature);
  return candidates.last_inside(enough - before);
}

float row_threshold(const Logits& logits, int64_t row, float temperature, int64_t top_k,
                    float top_p, Scratch& scratch) {
  const int64_t blocks = logits.blocks();
  const float* maxima = logits.row_maxima(row);
  float peak = maxima[0];
  for (int64_t b = 0; b < blocks; b++) {
    if (maxima[b] != maxima[b]) return NEG_INF;
    peak = std::max(peak, maxima[b]);
  }
  if (!std::isfinite(peak)) return NEG_INF;
  const bool limited = top_k < logits.num_columns;
  Candidates candidates(logits, row, scratch);
  const float floor = limited ? candidates.collect_largest(std::max<int64_t>(1, top_k)) : NEG_INF;
  if (top_p >= 1) return floor;
  if (!limited) return nucleus_threshold(logits, row, peak, temperature, top_p, candidates);
  return candidates.last_inside(candidates.weigh(peak, temperature) * double(top_p));
}

}  // namespace

void truncation_thresholds(Team& team, const Logits& logits, const SelectedRows& selected,
                           const int64_t* top_k, const float* top_p, float* out) {
  team.pieces(selected.count, 1, [&](int64_t first, int64_t last) {
    thread_local Scratch scratch;
    for (int64_t i = first; i < last; i++)
      out[i] = row_threshold(logits, selected.rows[i], selected.temperature[i], top_k[i],
                             top_p[i], scratch);
  });
}

}  // namespace toka
