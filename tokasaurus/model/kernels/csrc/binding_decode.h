// The decode step as a class for torch, which owns it and what it points to, and as a plain C
// function: between two passes every call that goes through torch costs more than the whole step's
// bookkeeping. Part of binding.cpp.
#pragma once

#include <torch/custom_class.h>

#include <exception>
#include <utility>
#include <vector>

#include "binding_stack.h"
#include "decode_step.h"

namespace toka {
namespace {

class DecodeStepHolder : public torch::CustomClassHolder {
 public:
  // Lists and sizes as decoder_stack takes them. An empty embedding: it is the head's.
  DecodeStepHolder(std::vector<at::Tensor> weights, std::vector<at::Tensor> caches,
                   at::Tensor rotary_table, at::Tensor final_norm, at::Tensor embedding,
                   at::Tensor head, std::vector<double> scales, std::vector<double> softcaps,
                   std::vector<int64_t> windows, double norm_eps, std::vector<int64_t> sizes,
                   std::vector<int64_t> formats)
      : weights_(std::move(weights)), caches_(std::move(caches)),
        others_{std::move(rotary_table), std::move(final_norm), std::move(embedding),
                std::move(head)},
        step_(model(scales, softcaps, windows, norm_eps, sizes, formats)) {}

  int64_t address() const { return reinterpret_cast<int64_t>(&step_); }

 private:
  // sizes: hidden, intermediate, heads, KV heads, head, page, vocabulary, rows of logits at once;
  // formats: kind and group size of the layers, then of the head.
  DecodeModel model(const std::vector<double>& scales, const std::vector<double>& softcaps,
                    const std::vector<int64_t>& windows, double norm_eps,
                    const std::vector<int64_t>& sizes, const std::vector<int64_t>& formats) const {
    TORCH_CHECK(sizes.size() == 8 && formats.size() == 4, "a decode step has 8 sizes, 2 formats");
    TORCH_CHECK(sizes[7] > 0, "no row of logits fits");
    const at::Tensor &table = others_[0], &embedding = others_[2], &head = others_[3];
    DecodeModel result{};
    result.stack = stack_of({weights_, caches_, scales, softcaps, windows, table, others_[1],
                             norm_eps, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5],
                             formats[0], formats[1]});
    TORCH_CHECK(result.stack.final_norm != nullptr, "a decode step needs all layers");
    std::swap(result.stack.final_norm, result.final_norm);
    result.vocab_size = sizes[6];
    result.max_logits_rows = sizes[7];
    result.max_positions = table.size(0);
    result.head_format = format_of(formats[2], formats[3]);
    check_packed(head, result.vocab_size, sizes[0], false, result.stack.cache.type,
                 result.head_format);
    result.head = head.const_data_ptr();
    if (embedding.numel() == 0) return result;
    check_contiguous(embedding, table.scalar_type(), "the embedding");
    TORCH_CHECK(embedding.numel() == result.vocab_size * sizes[0], "the embedding's size");
    result.embedding = embedding.const_data_ptr();
    return result;
  }

  std::vector<at::Tensor> weights_, caches_, others_;
  DecodeStep step_;
};

inline void define_decode(torch::Library& m) {
  m.class_<DecodeStepHolder>("DecodeStep")
      .def(torch::init<std::vector<at::Tensor>, std::vector<at::Tensor>, at::Tensor, at::Tensor,
                       at::Tensor, at::Tensor, std::vector<double>, std::vector<double>,
                       std::vector<int64_t>, double, std::vector<int64_t>,
                       std::vector<int64_t>>())
      .def("address", &DecodeStepHolder::address);
}

}  // namespace
}  // namespace toka

// The number of passes that ran; -1 if memory ran out (where a thread of a parallel region finds
// none the process ends, as it does under the operators), -2 if a sequence has more tokens than its
// block table has room for or the model has positions; its pass has changed nothing then.
extern "C" __attribute__((visibility("default"))) int64_t toka_decode_step(
    void* step, const toka::DecodeSlots* slots, const int64_t* row_slots, int64_t num_rows,
    const int32_t* groups, int64_t num_groups, const toka::DecodePasses* passes,
    int32_t* tokens) {
  try {
    return static_cast<toka::DecodeStep*>(step)->run(
        *slots, {row_slots, num_rows, groups, num_groups}, *passes, tokens, toka::threads());
  } catch (const std::out_of_range&) {
    return -2;
  } catch (const std::exception&) {
    return -1;
  }
}
