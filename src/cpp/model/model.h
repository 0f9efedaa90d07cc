// Model: config and weights on a backend. Immutable once made, so threads and sessions share it.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "core/function_ref.h"
#include "core/memory_pool.h"
#include "core/wait_lock.h"
#include "io/checkpoint.h"
#include "model/activations.h"
#include "model/kv_cache.h"
#include "model/layer_plan.h"
#include "model/rope.h"
#include "model/weights.h"

namespace llama2cpp {

struct ModelOptions {
  std::string backend = "auto";   // auto, cpu, metal
  int threads = 0;                // 0: default_threads()
  std::int64_t context = 0;       // of a session that does not say; 0: config.seq_len, or what memory has room for
  std::string kv_dtype = "auto";  // auto: f32 for f32 weights and llama2.c's, else f16; f32; f16; q8_0
  std::string activation_dtype = "auto";  // auto: int8 for quantized weights; f32; bf16; int8
  std::string pack = "auto";              // auto, always, never
};

class Model {
 public:
  // Throws FormatError for tensors that do not fit the config, std::invalid_argument for options.
  // With a backend of the caller's, what the options say of it does not matter.
  Model(Checkpoint checkpoint, const ModelOptions& options, std::shared_ptr<Backend> backend = nullptr);

  // `base` with some of its matrices replaced, by the names in its file. All others, packed ones too, and the backend are
  // shared with it. Where the output is the embedding table, an edit of the output gives it a matrix of its own; so does
  // `untie`, for an edit of the embeddings that leaves the output as it was. Packs `base` if it is to be packed, which
  // `poll` may end.
  Model(const Model& base, const std::vector<Weight>& edits, bool untie, FunctionRef<void()> poll);

  const Config& config() const { return checkpoint_.config; }
  const Checkpoint& checkpoint() const { return checkpoint_; }
  const Weights& weights() const { return weights_; }
  // Of a session of that context.
  const RopeAngles& rope(std::int64_t context) const { return config().is_long(context) ? long_rope_ : rope_; }
  const RopeAngles& local_rope() const { return local_rope_; }  // of layers that have local_rope in their plan
  const LayerPlan& plan(std::int64_t layer) const { return plan_[static_cast<std::size_t>(layer)]; }
  Backend& backend() const { return *backend_; }
  std::int64_t context() const { return context_; }
  // Whether that is less than the model's own for want of memory.
  bool context_is_cut() const { return context_is_cut_; }
  DType kv_dtype() const { return kv_dtype_; }
  bool packed() const { return pack_; }
  // What matmuls round their input to, where a weight takes it: "int8", "bf16" or "f32".
  std::string_view activation_dtype() const { return activation_dtype_; }

  // Bytes that matrices take while the model runs: packed, or the file's.
  std::size_t matrix_bytes() const { return matrix_bytes_; }

  // Packs the weights, the first time. Takes the backend's lease. `poll` is called while it waits, and may throw. Throws what
  // reading their files does too, and FormatError where one of them is not as it was opened.
  void prepare(FunctionRef<void()> poll) const;

  // The mapped files that a forward reads from now on, for FileReads. Packed weights need theirs no more.
  std::span<const Buffer> files() const;

  // Buffers for a forward of up to `rows` rows; they go back to the model when the pointer is let go.
  using ActivationsLoan = std::unique_ptr<Activations, std::function<void(Activations*)>>;
  ActivationsLoan borrow_activations(std::int64_t rows) const;

  // Room for a session's keys and values. Throws what KvCache does.
  std::unique_ptr<KvCache> make_cache(std::int64_t context) const;

  // Memory for what a caller keeps, which the ops can write to. It holds anything.
  Buffer borrow_memory(std::size_t bytes) const { return memory_.borrow(bytes); }

 private:
  Checkpoint checkpoint_;
  std::shared_ptr<Backend> backend_;
  mutable Weights weights_;  // packing adds panels, and changes nothing that anyone can see
  RopeAngles rope_, long_rope_, local_rope_;
  std::vector<LayerPlan> plan_;  // [n_layers]
  DType kv_dtype_;
  std::int64_t context_;
  bool context_is_cut_ = false;
  bool pack_;
  std::size_t matrix_bytes_ = 0;  // counted once: later another thread may be packing
  std::string_view activation_dtype_ = "f32";
  std::vector<Weight*> unpacked_;             // of weights_, those that had no panels when the model was made
  std::vector<Buffer> all_files_;             // of all weights
  mutable std::vector<Buffer> packed_files_;  // of what is not packed: set before prepared_ is
  mutable WaitLock prepare_lock_;
  mutable std::atomic<bool> prepared_{false};
  mutable WaitLock loans_lock_;
  mutable std::vector<std::unique_ptr<Activations>> idle_activations_;
  mutable MemoryPool memory_;
};

}  // namespace llama2cpp
