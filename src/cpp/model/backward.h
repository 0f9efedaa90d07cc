// Back through one sequence. Each op of forward.cpp has its gradient here, in the reverse order.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "backend/gradient_ops.h"
#include "core/function_ref.h"
#include "core/thread_pool.h"
#include "model/activations.h"
#include "model/forward.h"
#include "model/given_activations.h"
#include "model/layer_tape.h"
#include "model/model.h"
#include "model/norms.h"

namespace llama2cpp {

// The gradients that are worked on, T rows.
class GradientBuffers {
 public:
  GradientBuffers(const Config& config, Backend& backend, std::int64_t tokens, bool patterns, bool results);
  static double bytes(const Config& config, std::int64_t tokens, bool patterns, bool results);

  Tensor stream;           // [T, dim]       of the residual stream
  Tensor added;            // [T, dim]       of what attention or the MLP adds to it
  Tensor read, also_read;  // [T, dim]       of what they read
  Tensor centered;         // [T, dim]       used by LayerNorm
  Tensor direction;        // [T, dim]       of norms that were changed
  Tensor scale;            // [T, 1]
  Tensor head_scale;       // [T * n_heads, 1] the norms of heads: their scales, and the gradients of those
  Tensor head_dscale;
  Tensor ones;             // [T, 1]
  Tensor minus_sin;        // [T, rotary / 2]  back is the other way
  Tensor q, z;             // [T, n_heads * head_dim]
  Tensor k, v;             // [T, n_kv_heads * head_dim]
  Tensor gate, up;         // [T, hidden_dim], or [T * k, hidden_dim] of experts
  Tensor pattern, scores;  // [n_heads, T, T], where one looks
  Tensor expert_out;       // [T * k, dim]   where the MLP is experts, and the next three
  Tensor expert_weights;   // [T, k]
  Tensor routing;          // [T, n_experts]
  Tensor place_ones;       // [T, k]
  Tensor results;          // [T, n_heads * dim], where one looks

 private:
  Buffer memory_;
};

// What is the same for all layers of a sequence.
struct Backward {
  const Model& model;
  SequenceInput sequence;  // all of it, from position 0
  Activations& a;          // of the layer that was run last
  const LayerTape& tape;
  GradientBuffers& g;
  const Hooks& forward_hooks;  // the tape's
  const Hooks& hooks;          // which see gradients
  const PlaceSet& stop;
  const GivenActivations& given;  // what hooks of the run had changed
  const LayerTape* unchanged;     // norms before that; null where none was changed

  const Config& c = model.config();
  const Weights& w = model.weights();
  Backend& be = model.backend();
  GradientOps& ops = *be.gradient_ops();
  std::vector<float> capped_logits = {};  // gradients of logits before their cap

  // From dlogits [T, vocab_size] to g.stream, the gradient of `x`, which is the residual stream after the last layer. [T, dim]
  void logits(const float* x, const float* dlogits);

  // g.stream goes from after the layer to before it. x [T, dim]: the residual stream before it.
  void layer(std::int64_t i, const float* x);

  void embed() { see(Point::embed, 0, g.stream); }

 private:
  void attention(const LayerWeights& l, const LayerPlan& plan, std::int64_t i, const Tensor& read);
  void mlp(const LayerWeights& l, std::int64_t i, const Tensor& read);
  void experts(const LayerWeights& l, std::int64_t i, const Tensor& read);
  void router(const LayerWeights& l, std::int64_t i, const Tensor& read);
  // A norm as it was computed, of some rows: x / scale before its gain, that scale, and x / scale with the scale of x
  // itself, which is another one where a hook changed it.
  struct NormRun {
    Tensor normalized, scale, direction;
  };
  NormRun norm_run(NormPoints points, std::int64_t i);  // of the layer that was run last, all rows
  // Back through a norm, in place: from its output to what it reads.
  // What other rows' gradients are is zero, and stays so.
  void norm(const Tensor& d, Range rows, const Vector& gain, const NormRun& run, NormPoints points, std::int64_t i);
  void norm_after(const Vector& gain, NormPoints points, std::int64_t i);
  void before(const LayerPlan& plan, const Vector& gain, NormPoints points, std::int64_t i);
  void heads(const LayerWeights& l, std::int64_t i, Point q, Point k);
  void heads(const Tensor& d, const Tensor& x, const Vector& gain);
  void turn(const LayerPlan& plan);
  void results(std::int64_t i);
  void back(std::initializer_list<const Weight*> weights, std::initializer_list<Tensor> dys, const Tensor& out);

  // Shows a gradient, and lets it go no further where that is wanted.
  void see(Point point, std::int64_t i, const Tensor& d);

  HookSpan span() const { return {0, all_rows().end, 0, sequence.sequence}; }
  Range all_rows() const { return {0, static_cast<std::int64_t>(sequence.tokens.size())}; }
  void scale_by(const Tensor& d, float factor) {
    if (factor != 1.0F) be.scale(d, factor, d);
  }
};

}  // namespace llama2cpp
