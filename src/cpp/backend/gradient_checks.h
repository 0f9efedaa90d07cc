// What the ops of gradient_ops.h check at their door: as op_checks.h does for those of backend.h.
#pragma once

#include <span>

#include "backend/gradient_ops.h"

namespace llama2cpp::op_checks {

void matmul_transposed(std::span<const Weight* const> weights, std::span<const Tensor> dys, const Tensor& out);
void matmul_experts_transposed(std::span<const ExpertWeights> weights, std::span<const Tensor> dys,
                               const Tensor& experts, const Tensor& out);
void mix_experts_gradient(const Tensor& d, const Tensor& x, const Tensor& weights, const Tensor& dx,
                          const Tensor& dweights);
void route_gradient(const Tensor& scores, const Tensor& experts, const Tensor& dweights, const Tensor& dscores);
void norm_scale_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale, const Tensor& dscale);
void norm_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale, const Tensor& dscale);
void gated_gradient(const Tensor& gate, const Tensor& up, const Tensor& d, const Tensor& dup);
void activate_gradient(Activation activation, const Tensor& x, const Tensor& d);
void soft_cap_gradient(const Tensor& y, float cap, const Tensor& d);
void attention_gradient(const Tensor& q, const AttentionSpan& span, const AttentionGradients& gradients);

}  // namespace llama2cpp::op_checks
