// A call that keeps activations: what it takes, checked before anything is allocated, and the call itself.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "core/function_ref.h"
#include "model/session.h"
#include "observe/capture.h"
#include "observe/hooks.h"

namespace llama2cpp {

struct CachedRun {
  std::vector<Capture::Slot> slots;  // where each place's activation lies in `activations`
  Buffer activations;
  Buffer out;              // [sequences, tokens, width] f32: logits, or the residual stream before stop_at_layer
  std::int64_t width = 0;  // vocab_size, or dim
};

// Feeds new sessions of one model prompts of one length. places: what is kept, of the tokens at `positions`, or of all if
// there are none. With stop_at_layer no session moves on. `hooks` are the call's others. Throws std::invalid_argument,
// OutOfMemoryError, and what run() does; `poll` as there.
CachedRun run_with_cache(const Model& model, std::span<Session* const> sessions,
                         std::span<const std::vector<std::int32_t>> prompts, std::vector<Place> places,
                         std::vector<std::int64_t> positions, std::optional<std::int64_t> stop_at_layer, Hooks hooks,
                         FunctionRef<void()> poll);

// Bytes that such a call takes beside the weights and the KV cache: the activations that are kept, `out_bytes`, and what a
// pass works in.
double cached_run_bytes(const Config& c, std::span<const Capture::Slot> slots, double kept_bytes, double out_bytes,
                        std::int64_t sequences, std::int64_t tokens, bool one_pass);

}  // namespace llama2cpp
