// See plain_sampling.h. The definitions are those of model/sampling: sampler.py, noise.py.
#include "plain_sampling.h"

#include <algorithm>
#include <cmath>

namespace toka {
namespace {

constexpr float MAX_TEMPERATURE = 1e6f;

uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

uint64_t noise_key(int64_t seed, int64_t position) {
  return mix64(mix64(uint64_t(seed) + 0x9E3779B97F4A7C15u) ^ uint64_t(position));
}

bool is_random(const SamplingColumns& columns, int64_t slot) {
  return columns.temperature[slot] > 0 && columns.top_k[slot] != 1;
}

}  // namespace

void PlainSampler::sample(const float* data, int64_t vocab_size, int64_t count,
                          const int64_t* slots, const int64_t* positions,
                          const SamplingColumns& columns, int64_t* tokens, int threads) {
  Logits logits{data, nullptr, vocab_size};
  maxima_.resize(count * logits.blocks());
  block_maxima(logits, count, maxima_.data(), threads);
  logits.maxima = maxima_.data();
  best_columns(logits, count, tokens, threads);
  rows_.clear();
  for (int64_t row = 0; row < count; row++)
    if (is_random(columns, slots[row])) rows_.push_back(row);
  if (!rows_.empty()) draw_random(logits, slots, positions, columns, tokens, threads);
  mark_broken_rows(logits, count, tokens);
}

void PlainSampler::draw_random(const Logits& logits, const int64_t* slots,
                               const int64_t* positions, const SamplingColumns& columns,
                               int64_t* tokens, int threads) {
  const size_t count = rows_.size();
  temperature_.resize(count);
  peak_.resize(count);
  threshold_.resize(count);
  scores_.resize(count);
  drawn_.resize(count);
  keys_.resize(2 * count);
  for (size_t i = 0; i < count; i++) {
    const int64_t row = rows_[i], slot = slots[row];
    temperature_[i] = std::min(columns.temperature[slot], MAX_TEMPERATURE);
    peak_[i] = maximum_of(logits.row_maxima(row), logits.blocks());
    threshold_[i] = float(std::log(double(columns.min_p[slot])));
    const uint64_t key = noise_key(columns.seeds[slot], positions[row]);
    keys_[2 * i] = int64_t(key & 0xFFFFFFFFu);
    keys_[2 * i + 1] = int64_t(key >> 32);
  }
  raise_thresholds(logits, slots, columns, threads);
  DrawCall call{};
  call.selected = {rows_.data(), int64_t(count), temperature_.data()};
  call.keys = keys_.data();
  call.peak = peak_.data();
  call.threshold = threshold_.data();
  call.vocab_size = logits.num_columns;
  call.columns = drawn_.data();
  call.scores = scores_.data();
  draw(logits, call, threads);
  for (size_t i = 0; i < count; i++) tokens[rows_[i]] = drawn_[i];
}

void PlainSampler::raise_thresholds(const Logits& logits, const int64_t* slots,
                                    const SamplingColumns& columns, int threads) {
  places_.clear();
  cut_rows_.clear();
  top_k_.clear();
  top_p_.clear();
  cut_temperature_.clear();
  for (size_t i = 0; i < rows_.size(); i++) {
    const int64_t slot = slots[rows_[i]];
    int64_t top_k = columns.top_k[slot];
    if (top_k <= 0 || top_k > logits.num_columns) top_k = logits.num_columns;
    if (top_k == logits.num_columns && !(columns.top_p[slot] < 1)) continue;
    places_.push_back(int64_t(i));
    cut_rows_.push_back(rows_[i]);
    top_k_.push_back(top_k);
    top_p_.push_back(columns.top_p[slot]);
    cut_temperature_.push_back(temperature_[i]);
  }
  if (places_.empty()) return;
  smallest_.resize(places_.size());
  const SelectedRows selected{cut_rows_.data(), int64_t(cut_rows_.size()),
                              cut_temperature_.data()};
  truncation_thresholds(logits, selected, top_k_.data(), top_p_.data(), smallest_.data(), threads);
  for (size_t i = 0; i < places_.size(); i++) {
    const int64_t place = places_[i];
    const float scaled = (smallest_[i] - peak_[place]) / temperature_[place];
    threshold_[place] = std::max(threshold_[place], scaled);
  }
}

}  // namespace toka
