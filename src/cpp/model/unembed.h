// The end of a forward by itself: what a vector of the residual stream says about the next token.
#pragma once

#include <span>

#include "core/function_ref.h"
#include "model/model.h"

namespace llama2cpp {

// What a model does to products with its output matrix, in place: a multiplier, a soft cap.   logits [T, vocab_size]
void finish_logits(const Config& config, Backend& backend, const Tensor& logits);

// logits[t] = output . x[t], or with `norm` output . norm(x[t]), as the forward computes it: the same bits.
//                                                x [T, dim], logits [T, vocab_size]
// Takes the backend's lease, for at most kChunk rows at a time. `poll` is called between them and while it waits, and may throw.
void unembed(const Model& model, std::span<const float> x, bool norm, std::span<float> logits,
             FunctionRef<void()> poll);

}  // namespace llama2cpp
