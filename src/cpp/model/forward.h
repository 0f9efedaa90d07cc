// The forward pass of a Llama, for any number of tokens of any number of sequences at once.
#pragma once

#include <span>

#include "core/function_ref.h"
#include "model/kv_cache.h"
#include "model/model.h"
#include "observe/hooks.h"

namespace llama2cpp {

class Adapter;

// One sequence's part of a pass: tokens for the positions from `position` on.
struct SequenceInput {
  KvCache* kv = nullptr;
  std::int64_t position = 0;
  std::span<const std::int32_t> tokens;
  enum class Logits : std::uint8_t { none, last, all } logits = Logits::last;
  std::size_t sequence = 0;          // its index in the call, for hooks
  const float* residual = nullptr;   // [tokens, dim], with hooks.start_at_layer: what enters there
  const Adapter* adapter = nullptr;  // beside the weights, for this sequence; null: none
};

// Writes the tokens' keys and values to the caches and the logits that are wanted to a.logits, row after row in the
// order of the sequences. The caller holds the backend's lease, has resized `a`, and has checked ids and room.
// `poll` is called between the layers of a pass of several tokens and may throw to end the pass.
void forward(const Model& model, std::span<const SequenceInput> sequences, Activations& a, const Hooks& hooks,
             FunctionRef<void()> poll);

// One layer by itself, for the way back through it: a.x is the residual stream before it, [T, dim]. What the MLP gives is
// computed where a norm or the mixing of experts behind it needs it, and a.x is not read any more. As above.
void forward_to_go_back(const Model& model, std::span<const SequenceInput> sequences, Activations& a,
                        const Hooks& hooks, std::int64_t layer);

}  // namespace llama2cpp
