// Sampling as torch operators. Part of binding.cpp.
#pragma once

#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "binding_checks.h"
#include "parallel.h"
#include "sampling.h"

namespace toka {
namespace {

Logits logits_of(const at::Tensor& logits) {
  check_contiguous(logits, at::kFloat, "logits");
  TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, "logits must be rows of a vocabulary");
  return {logits.const_data_ptr<float>(), nullptr, logits.size(1)};
}

Logits logits_of(const at::Tensor& logits, const at::Tensor& maxima) {
  Logits result = logits_of(logits);
  check_contiguous(maxima, at::kFloat, "maxima");
  TORCH_CHECK(maxima.sizes() == at::IntArrayRef({logits.size(0), result.blocks()}),
              "there must be a maximum per row and block");
  result.maxima = maxima.const_data_ptr<float>();
  return result;
}

template <class T>
const T* column(const at::Tensor& tensor, at::ScalarType dtype, int64_t count, const char* name) {
  check_contiguous(tensor, dtype, name);
  TORCH_CHECK(tensor.numel() == count, name, " must have ", count, " elements");
  return tensor.const_data_ptr<T>();
}

SelectedRows selected_rows(const at::Tensor& logits, const at::Tensor& rows) {
  const int64_t* data = column<int64_t>(rows, at::kLong, rows.numel(), "rows");
  for (int64_t i = 0; i < rows.numel(); i++)
    TORCH_CHECK(data[i] >= 0 && data[i] < logits.size(0), "no row ", data[i]);
  return {data, rows.numel(), nullptr};
}

SelectedRows selected_rows(const at::Tensor& logits, const at::Tensor& rows,
                           const at::Tensor& temperature) {
  SelectedRows selected = selected_rows(logits, rows);
  selected.temperature = column<float>(temperature, at::kFloat, selected.count, "temperature");
  return selected;
}

// Calls body(team) in a region of as many threads as there are pieces of work.
template <class Body>
void in_region(int64_t num_pieces, Body&& body) {
  parallel_region(int(std::min<int64_t>(threads(), num_pieces)), body);
}

at::Tensor block_maxima_op(const at::Tensor& logits) {
  const Logits view = logits_of(logits);
  at::Tensor maxima = at::empty({logits.size(0), view.blocks()}, logits.options());
  float* data = maxima.mutable_data_ptr<float>();
  in_region(maxima_pieces(view, logits.size(0)),
            [&](Team& team) { block_maxima(team, view, logits.size(0), data); });
  return maxima;
}

at::Tensor best_tokens_op(const at::Tensor& logits, const at::Tensor& maxima) {
  const Logits view = logits_of(logits, maxima);
  at::Tensor columns = at::empty({logits.size(0)}, at::kLong);
  int64_t* data = columns.mutable_data_ptr<int64_t>();
  in_region(best_pieces(logits.size(0)),
            [&](Team& team) { best_columns(team, view, logits.size(0), data, nullptr); });
  return columns;
}

void mark_broken_rows_op(const at::Tensor& logits, const at::Tensor& maxima, at::Tensor& tokens) {
  check_contiguous(tokens, at::kLong, "tokens");
  TORCH_CHECK(tokens.numel() == logits.size(0), "there must be a token per row");
  mark_broken_rows(logits_of(logits, maxima), logits.size(0), tokens.mutable_data_ptr<int64_t>());
}

at::Tensor log_normalizers_op(const at::Tensor& logits, const at::Tensor& maxima,
                              const at::Tensor& rows) {
  const Logits view = logits_of(logits, maxima);
  const SelectedRows selected = selected_rows(logits, rows);
  at::Tensor out = at::empty({rows.numel()}, logits.options());
  float* data = out.mutable_data_ptr<float>();
  in_region(selected.count, [&](Team& team) { log_normalizers(team, view, selected, data); });
  return out;
}

at::Tensor truncation_thresholds_op(const at::Tensor& logits, const at::Tensor& maxima,
                                    const at::Tensor& rows, const at::Tensor& temperature,
                                    const at::Tensor& top_k, const at::Tensor& top_p) {
  const SelectedRows selected = selected_rows(logits, rows, temperature);
  const Logits view = logits_of(logits, maxima);
  const int64_t* k = column<int64_t>(top_k, at::kLong, selected.count, "top_k");
  const float* p = column<float>(top_p, at::kFloat, selected.count, "top_p");
  at::Tensor out = at::empty({rows.numel()}, logits.options());
  float* data = out.mutable_data_ptr<float>();
  in_region(selected.count, [&](Team& team) {
    truncation_thresholds(team, view, selected, k, p, data);
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> draw_op(const at::Tensor& logits, const at::Tensor& maxima,
                                           const at::Tensor& rows, const at::Tensor& keys,
                                           const at::Tensor& temperature, const at::Tensor& peak,
                                           const at::Tensor& threshold, int64_t vocab_size,
                                           int64_t first_block) {
  DrawCall call{};
  call.selected = selected_rows(logits, rows, temperature);
  const int64_t count = call.selected.count;
  call.keys = column<int64_t>(keys, at::kLong, 2 * count, "keys");
  call.peak = column<float>(peak, at::kFloat, count, "peak");
  call.threshold = column<float>(threshold, at::kFloat, count, "threshold");
  call.vocab_size = vocab_size;
  call.first_block = first_block;
  at::Tensor columns = at::empty({count}, at::kLong);
  at::Tensor scores = at::empty({count}, logits.options());
  call.columns = columns.mutable_data_ptr<int64_t>();
  call.scores = scores.mutable_data_ptr<float>();
  const Logits view = logits_of(logits, maxima);
  in_region(call.selected.count, [&](Team& team) { draw(team, view, call); });
  return {columns, scores};
}

inline void define_sampling(torch::Library& m) {
  m.def("block_maxima(Tensor logits) -> Tensor");
  m.def("best_tokens(Tensor logits, Tensor maxima) -> Tensor");
  m.def("mark_broken_rows(Tensor logits, Tensor maxima, Tensor(a!) tokens) -> ()");
  m.def("log_normalizers(Tensor logits, Tensor maxima, Tensor rows) -> Tensor");
  m.def(
      "truncation_thresholds(Tensor logits, Tensor maxima, Tensor rows, Tensor temperature, "
      "Tensor top_k, Tensor top_p) -> Tensor");
  m.def(
      "draw_tokens(Tensor logits, Tensor maxima, Tensor rows, Tensor keys, Tensor temperature, "
      "Tensor peak, Tensor threshold, int vocab_size, int first_block) -> (Tensor, Tensor)");
}

inline void implement_sampling(torch::Library& m) {
  m.impl("block_maxima", &block_maxima_op);
  m.impl("best_tokens", &best_tokens_op);
  m.impl("mark_broken_rows", &mark_broken_rows_op);
  m.impl("log_normalizers", &log_normalizers_op);
  m.impl("truncation_thresholds", &truncation_thresholds_op);
  m.impl("draw_tokens", &draw_op);
}

}  // namespace
}  // namespace toka
