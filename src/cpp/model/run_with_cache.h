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

// What such a call does beside hooks.
struct CachedRunOptions {
  // Of which tokens the activations are kept, for each run; of all, if empty.
  std::vector<std::vector<std::int64_t>> positions = {};
  std::optional<std::int64_t> start_at_layer = {};  // with `residual`
  std::optional<std::int64_t> stop_at_layer = {};
  // [sequences, tokens, dim], what enters there. The prompts' ids are not read then.
  std::span<const float> residual = {};
  bool logits = true;   // else `out` is empty, but with stop_at_layer
  bool halves = false;  // activations are kept as float16, and no patterns; std::overflow_error for what that has not
};

// Throws std::invalid_argument unless the sessions are new ones of the model, and each has a prompt with tokens.
void check_prompts(const Model& model, std::span<Session* const> sessions,
                   std::span<const std::vector<std::int32_t>> prompts);

// Feeds new sessions of one model their prompts, in one call. If all are of one length there is one run, else one for each.
// places: what is kept. With stop_at_layer no session moves on. `hooks` are the call's others. Throws
// std::invalid_argument, OutOfMemoryError, and what run() does; `poll` as there.
std::vector<CachedRun> run_with_cache(const Model& model, std::span<Session* const> sessions,
                                      std::span<const std::vector<std::int32_t>> prompts,
                                      const std::vector<Place>& places, const CachedRunOptions& options, Hooks hooks,
                                      FunctionRef<void()> poll);

// Bytes that such a call takes beside the weights and the KV cache: the activations that are kept, `out_bytes`, and what a
// pass works in.
double cached_run_bytes(const Config& c, std::span<const Capture::Slot> slots, double kept_bytes, double out_bytes,
                        std::int64_t sequences, std::int64_t tokens, bool one_pass);

}  // namespace llama2cpp
