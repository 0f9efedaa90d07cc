// Session: one sequence on a model. It has a KV cache, the tokens so far, and the logits that follow them.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/function_ref.h"
#include "core/wait_lock.h"
#include "model/adapter.h"
#include "model/kv_cache.h"
#include "model/model.h"
#include "model/session_lock.h"
#include "observe/hooks.h"

namespace llama2cpp {

class Session {
 public:
  // context 0: the model's. The adapter, which the model must fit, acts in all that is fed.
  Session(std::shared_ptr<const Model> model, std::int64_t context, std::shared_ptr<const Adapter> adapter = nullptr);

  // Goes on after `tokens`, whose keys and values are in `kv`; `logits` [vocab_size] follow them, or are empty.
  Session(std::shared_ptr<const Model> model, std::unique_ptr<KvCache> kv, std::vector<std::int32_t> tokens,
          std::span<const float> logits, std::shared_ptr<const Adapter> adapter = nullptr);

  const Model& model() const { return *model_; }
  const std::shared_ptr<const Model>& shared_model() const { return model_; }
  const std::shared_ptr<const Adapter>& adapter() const { return adapter_; }  // null: none
  std::int64_t context() const { return kv_->context(); }
  KvCache& kv() const { return *kv_; }

  // What the last finished call left; may be asked for at any time, by any thread and by a hook.
  std::int64_t position() const;
  std::vector<std::int32_t> tokens() const;
  // Calls see(logits [vocab_size]), or see(empty) where there are none yet or since a rewind. Meanwhile they stay.
  void with_logits(FunctionRef<void(std::span<const float>)> see) const;

  // These two lock the session: `poll` may end the waiting for it.
  // Keeps the first `position` tokens.
  void rewind(std::int64_t position, FunctionRef<void()> poll);

  // Another session in the same state, or that holds only the first `position` tokens, without logits if those are fewer
  // than all; from here on they are apart.
  std::unique_ptr<Session> fork(FunctionRef<void()> poll, std::optional<std::int64_t> position = {});

  // Becomes what `other`, of the same model, context and adapter, was at `position`, but for logits.
  void assign(Session& other, std::int64_t position, FunctionRef<void()> poll);

  // The tokens that the session was rewound over, as far as their keys and values are still there.
  std::vector<std::int32_t> ahead() const;
  // Throws std::invalid_argument unless `tokens` are the first of those, with what layers before this one need.
  void need_ahead(std::span<const std::int32_t> tokens, std::int64_t layer) const;

 private:
  friend class SessionLock;
  friend class Call;  // of run()

  std::span<const float> logits() const;  // empty: none
  void set_logits(std::span<const float> logits);

  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Adapter> adapter_;
  std::unique_ptr<KvCache> kv_;
  WaitLock lock_;                // held for a whole call
  mutable WaitLock state_lock_;  // held while tokens and logits are read or written
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> ahead_;  // the tokens after them before a rewind, whose keys and values lie there yet
  // In layers before this one the keys and values of all of these are what a whole run gives; behind it some are not.
  std::int64_t whole_layers_;
  bool has_logits_ = false;
  Buffer logits_;       // [vocab_size], after the last token
  Buffer next_logits_;  // [vocab_size], where a call makes them; when it has succeeded the two change places
};

// Tokens for one session, and where their logits go.
struct Work {
  Session* session = nullptr;
  std::span<const std::int32_t> tokens;
  // [tokens, vocab_size], or null: only the last token's are made. The ops write to it. Where those of several sessions
  // follow each other, they are one piece of memory.
  float* all_logits = nullptr;
  bool copied = false;           // all_logits is no memory of the backend's: logits are made elsewhere, and copied
  float* last_logits = nullptr;  // [vocab_size], or null: the last token's are left in the session only
  // [tokens, dim], with hooks.start_at_layer: what enters there in place of the tokens' embeddings.
  const float* residual = nullptr;
  // The tokens must be those that the session was rewound over: the layers that are left out have their keys and values.
  bool known = false;
};

// How many rows a pass has at most: enough that the weights are read once for many tokens, few enough that the
// activations stay in cache.
inline constexpr std::int64_t kChunk = 128;

// Twice as many where that leaves a layer short: between layers a call can be ended, and each pass opens all weights anew.
inline std::int64_t chunk_of(const Config& c) {
  const std::int64_t layer = c.dim * (2 * c.q_dim() + 2 * c.kv_dim() + 3 * c.hidden_dim);
  return layer < 8'000'000 ? 2 * kChunk : kChunk;
}

// Feeds several sessions of one model together, in passes of at most `chunk` rows, or chunk_of the model (with hooks
// that may write, all rows of a call are one pass). Either all sessions move on or, when anything throws, none does. Throws std::invalid_argument for ids
// outside the vocabulary, no tokens, a session named twice or of another model, and ContextFullError. `poll` is called
// about every 50 ms of a long call and of waiting for anything, without the backend's lease, and may throw to end it; and
// once more before the sessions move on, if the backend has a warning. With hooks.stop_at_layer no session moves on and no
// logits are written; with hooks.no_logits they move on and have none. With hooks.start_at_layer each has a residual, and
// recordings keep nothing of the call.
void run(std::span<const Work> work, const Hooks& hooks, FunctionRef<void()> poll,
         std::optional<std::int64_t> chunk = {});

}  // namespace llama2cpp
