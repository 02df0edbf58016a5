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

void PlainSampler::reserve(int64_t num_rows, int64_t vocab_size) {
  maxima_.reserve(num_rows * Logits{nullptr, nullptr, vocab_size}.blocks());
  keys_.reserve(2 * num_rows);
  for (auto* column : {&peaks_, &temperature_, &peak_, &threshold_, &scores_, &cut_temperature_,
                       &top_p_, &smallest_})
    column->reserve(num_rows);
  for (auto* column : {&rows_, &drawn_, &places_, &cut_rows_, &top_k_}) column->reserve(num_rows);
}

void PlainSampler::prepare(const PlainDraw& draw) {
  draw_ = draw;
  logits_ = {draw.logits, nullptr, draw.vocab_size};
  maxima_.resize(draw.count * logits_.blocks());
  logits_.maxima = maxima_.data();
  peaks_.resize(draw.count);
  rows_.clear();
  for (int64_t row = 0; row < draw.count; row++)
    if (is_random(draw.columns, draw.slots[row])) rows_.push_back(row);
  if (rows_.empty()) return;
  prepare_random();
  prepare_cuts();
}

void PlainSampler::prepare_random() {
  const size_t count = rows_.size();
  for (auto* column : {&temperature_, &peak_, &threshold_, &scores_}) column->resize(count);
  drawn_.resize(count);
  keys_.resize(2 * count);
  const SamplingColumns& columns = draw_.columns;
  for (size_t i = 0; i < count; i++) {
    const int64_t row = rows_[i], slot = draw_.slots[row];
    temperature_[i] = std::min(columns.temperature[slot], MAX_TEMPERATURE);
    threshold_[i] = float(std::log(double(columns.min_p[slot])));
    const uint64_t key = noise_key(columns.seeds[slot], draw_.positions[row]);
    keys_[2 * i] = int64_t(key & 0xFFFFFFFFu);
    keys_[2 * i + 1] = int64_t(key >> 32);
  }
}

void PlainSampler::prepare_cuts() {
  for (auto* column : {&places_, &cut_rows_, &top_k_}) column->clear();
  for (auto* column : {&top_p_, &cut_temperature_}) column->clear();
  for (size_t i = 0; i < rows_.size(); i++) {
    const int64_t slot = draw_.slots[rows_[i]];
    int64_t top_k = draw_.columns.top_k[slot];
    if (top_k <= 0 || top_k > draw_.vocab_size) top_k = draw_.vocab_size;
    if (top_k == draw_.vocab_size && !(draw_.columns.top_p[slot] < 1)) continue;
    places_.push_back(int64_t(i));
    cut_rows_.push_back(rows_[i]);
    top_k_.push_back(top_k);
    top_p_.push_back(draw_.columns.top_p[slot]);
    cut_temperature_.push_back(temperature_[i]);
  }
  smallest_.resize(places_.size());
}

void PlainSampler::sample(Team& team) {
  // The first thread may prepare the next draw as soon as the others have passed the last barrier.
  const bool has_random = !rows_.empty();
  block_maxima(team, logits_, draw_.count, maxima_.data());
  team.barrier();
  best_columns(team, logits_, draw_.count, draw_.tokens, peaks_.data());
  team.barrier();
  if (has_random) {
    if (!places_.empty()) {
      const SelectedRows cut{cut_rows_.data(), int64_t(places_.size()), cut_temperature_.data()};
      truncation_thresholds(team, logits_, cut, top_k_.data(), top_p_.data(), smallest_.data());
      team.barrier();
    }
    if (team.rank() == 0) raise_thresholds();
    team.barrier();
    DrawCall call{};
    call.selected = {rows_.data(), int64_t(rows_.size()), temperature_.data()};
    call.keys = keys_.data();
    call.peak = peak_.data();
    call.threshold = threshold_.data();
    call.vocab_size = draw_.vocab_size;
    call.columns = drawn_.data();
    call.scores = scores_.data();
    draw(team, logits_, call);
    team.barrier();
  }
  if (team.rank() == 0) finish();
}

void PlainSampler::raise_thresholds() {
  for (size_t i = 0; i < rows_.size(); i++) peak_[i] = peaks_[rows_[i]];
  for (size_t i = 0; i < places_.size(); i++) {
    const int64_t place = places_[i];
    const float scaled = (smallest_[i] - peak_[place]) / temperature_[place];
    threshold_[place] = std::max(threshold_[place], scaled);
  }
}

void PlainSampler::finish() {
  for (size_t i = 0; i < rows_.size(); i++) draw_.tokens[rows_[i]] = drawn_[i];
  for (int64_t row = 0; row < draw_.count; row++)
    if (!std::isfinite(peaks_[row])) draw_.tokens[row] = -1;
}

}  // namespace toka
