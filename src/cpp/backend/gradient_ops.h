// GradientOps: what going back through a model needs beside the ops of Backend. `d` of something is the gradient of one
// number with respect to it. A backend that has them gives them by Backend::gradient_ops.
//
// Checks, memory and T as in backend.h.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"

namespace llama2cpp {

// Gradients of attention, of one sequence from position 0 on: its span has its keys and values as the forward left them.
// Tensors that are empty are not wanted.
struct AttentionGradients {
  Tensor dz = {};               // [T, n_heads * head_dim]  given
  Tensor dq = {};               // [T, n_heads * head_dim]
  Tensor dk = {}, dv = {};      // [T, n_kv_heads * head_dim]
  Tensor dpattern = {};         // [n_heads, T, T] or empty. Masked ones, which the forward does not read, are 0
  Tensor dscores = {};          // the same
  bool through_pattern = true;  // whether the pattern's gradient goes on to scores
  bool through_scores = true;   // and theirs to queries and keys
  // Where the forward went on from others than its own, given, [n_heads, T, T]: the scores that it took the softmax of,
  // after their cap, and the pattern that it mixed values by. Masked ones are not read.
  Tensor scores = {};
  Tensor pattern = {};
};

class GradientOps {
 public:
  virtual ~GradientOps() = default;

  // out[t] = sum over i of dys[i][t] . weights[i]   weights[i] [rows_i, n], dys[i] [T, rows_i] -> out [T, n]
  virtual void matmul_transposed(std::span<const Weight* const> weights, std::span<const Tensor> dys,
                                 const Tensor& out) = 0;

  // Of matmul_experts. For each place p = t * k + j, where e is experts[t, j]:
  // out[p] = sum over i of dys[i][p] . weights[i][e]   dys[i] [T * k, rows_i], experts [T, k] i32 -> out [T * k, cols]
  virtual void matmul_experts_transposed(std::span<const ExpertWeights> weights, std::span<const Tensor> dys,
                                         const Tensor& experts, const Tensor& out) = 0;

  // Of mix_experts, whose output's gradient is d [T, n]: dx[p] = d[t] * weights[p], dweights[p] = d[t] . x[p]
  //                                  x [T * k, n], weights [T, k] -> dx [T * k, n], dweights [T, k]
  virtual void mix_experts_gradient(const Tensor& d, const Tensor& x, const Tensor& weights, const Tensor& dx,
                                    const Tensor& dweights) = 0;

  // Of route, the choice taken as it is. Scores of experts that were not chosen get something only where softmax is over
  // all of them and weights are as it gives them.    scores [T, E], experts and dweights [T, k] -> dscores [T, E]
  virtual void route_gradient(const Tensor& scores, const Routing& routing, const Tensor& experts,
                              const Tensor& dweights, const Tensor& dscores) = 0;

  // The two halves of a norm, whose output is x / scale before its gain. d is that of the output.
  // dscale[t] = -(d[t] . normalized[t]) / scale[t]  d and normalized [T, n], scale [T, 1] -> dscale [T, 1]
  virtual void norm_scale_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale,
                                   const Tensor& dscale) = 0;
  // d[t] becomes that of x: d[t] * (1 / scale[t]) + normalized[t] * (dscale[t] / n)
  virtual void norm_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale, const Tensor& dscale) = 0;

  // Of gated: d [T, n] is that of its output; it becomes that of gate. -> dup [T, n]
  virtual void gated_gradient(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& d,
                              const Tensor& dup) = 0;
  // Of activate, in place.
  virtual void activate_gradient(Activation activation, const Tensor& x, const Tensor& d) = 0;

  // Of soft_cap, from its output y: d becomes d * (1 - (y / cap)^2).
  virtual void soft_cap_gradient(const Tensor& y, float cap, const Tensor& d) = 0;

  // q [T, n_heads * head_dim] as the forward's scores took it.
  virtual void attention_gradient(const Tensor& q, const AttentionSpan& span, const AttentionGradients& gradients) = 0;
};

}  // namespace llama2cpp
