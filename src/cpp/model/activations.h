// The buffers of one forward: every activation by its name, with its shape. T rows (tokens), of which R want logits.
#pragma once

#include "backend/backend.h"
#include "core/buffer.h"
#include "core/config.h"
#include "core/tensor.h"
#include "core/thread_pool.h"

namespace llama2cpp {

class Activations {
 public:
  Activations(const Config& config, Backend& backend, std::int64_t capacity);

  // What that many rows take, without logits.
  static double bytes(const Config& config, std::int64_t rows);

  // Makes the views below for T rows, T <= capacity. Each begins on a cache line.
  // to: memory for the logits, [R, vocab_size]; their own if null.
  void resize(std::int64_t rows, std::int64_t logit_rows, float* to = nullptr, bool with_logits = true);

  // The same memory, seen as some of its rows: all views of one forward's rows but those of logits.
  Activations of_rows(Range rows) const;

  // Makes the last two views below, width <= n_heads * head_dim. Their memory is taken when they are first wanted.
  void add_results(std::int64_t width);
  std::int64_t capacity() const { return capacity_; }

  Tensor x;                     // [T, dim]          the residual stream
  Tensor scale;                 // [T, 1]            RMSNorm's divisor
  Tensor ones;                  // [T, 1]            that divisor where there is none
  Tensor head_scale;            // [T * n_heads, 1]  of heads that are normalised by themselves
  Tensor normalized;            // [T, dim]          used where a hook looks, or a norm has a bias
  Tensor centered;              // [T, dim]          used by LayerNorm
  Tensor cos, sin;              // [T, rotary / 2]   of each row's position
  Tensor local_cos, local_sin;  // [T, rotary / 2]   of layers with a window, where they have others
  Tensor q;                     // [T, n_heads * head_dim]
  Tensor k, v;                  // [T, n_kv_heads * head_dim]
  Tensor z;                     // [T, n_heads * head_dim]
  Tensor attn_out;              // [T, dim]
  Tensor gate, up;              // [T, hidden_dim], or with experts [T * k, hidden_dim]
  Tensor mlp_out;               // [T, dim]
  Tensor router_scores;         // [T, n_experts]
  Tensor expert_ids;            // [T, k] i32, where each token goes
  Tensor expert_weights;        // [T, k]
  Tensor expert_out;            // [T * k, dim]
  Tensor routing_shown;         // [T, n_experts]  what hooks see of ids and weights
  Tensor last;                  // [R, dim]          rows of x that want logits
  Tensor logits;                // [R, vocab_size]
  Tensor results;               // [T, n_heads * dim]  what each head adds, where a hook looks
  Tensor one_head;              // [T, width]          the input of one of them

 private:
  Config config_;
  Backend& backend_;
  std::int64_t capacity_;
  Buffer memory_;
  Buffer logits_memory_;
  Buffer results_memory_;
};

}  // namespace llama2cpp
