// Gradients of a number with respect to every activation of a run: going back through the forward, layer by layer.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/function_ref.h"
#include "model/given_activations.h"
#include "model/run_with_cache.h"

namespace llama2cpp {

// Why there are none for the model; empty where there are. What is not in this list is whole.
std::string why_no_gradients(const Model& model);

// What a run has to say of the gradients that are wanted.
struct GradientCall {
  std::span<Session* const> sessions;                  // new ones: their caches are what is worked in
  std::span<const std::vector<std::int32_t>> prompts;  // of one length
  std::span<const float> dlogits;                      // [sequences, tokens, vocab_size]
  std::vector<Place> places;                           // whose gradients are kept
  std::vector<std::int64_t> positions;                 // of these tokens; of all where it is empty
  PlaceSet stop;                                       // whose gradients are shown and go no further
  // The residual stream before each layer, and after the last, [sequences, tokens, dim] each, where the caller has it; or
  // empty. Then a forward comes first.
  std::vector<const float*> stream;
  // What hooks of the run had changed: [sequences, tokens, ...] each. Gradients go through each change as if it had added a
  // constant. With any, `stream` is needed.
  std::vector<GivenActivation> given = {};
};

// Each layer is run again from its residual stream, and then back. The same bits for any number of threads, however the
// prompts were cut. Throws std::invalid_argument where there are no gradients, and what run_with_cache does; `out` is empty.
CachedRun gradients(const Model& model, GradientCall call, FunctionRef<void()> poll);

}  // namespace llama2cpp
