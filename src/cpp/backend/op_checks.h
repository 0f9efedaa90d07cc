// What the ops of every backend check at their door: all refuse the same in the same words. Each throws
// std::invalid_argument with the op's name, what it expected and what it got. A backend has checks of its own only for what
// it alone cannot do.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "core/tensor.h"
#include "format/format.h"

namespace llama2cpp::op_checks {

// Of experts [T, k]: each token's ascend from 0 or more to less than n_experts.
void need_experts(const char* op, const Tensor& experts, std::int64_t n_experts);
void embed(const Weight& table, std::span<const std::int32_t> tokens, const Tensor& out);
void take_rows(const Tensor& x, std::span<const std::int64_t> rows, const Tensor& out);
void rms_scale(const Tensor& x, const Tensor& scale);
void center(const Tensor& x, const Tensor& out);
void normalize(const Tensor& x, const Norm& norm, const Tensor& out);
void scale(const Tensor& x, float factor, const Tensor& out);
void matmul(std::span<const Weight* const> weights, const Tensor& x, std::span<const Tensor> outs, const Norm& norm);
void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, std::int64_t head_dim);
void store_kv(const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans);
void attention(const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z, AttentionStage first,
               AttentionStage last);
void gated(const Tensor& gate, const Tensor& up, const Tensor& out);
void activate(Activation activation, const Tensor& x, const Tensor& out);
void soft_cap(const Tensor& x, float cap, const Tensor& out);
void add(const Tensor& a, const Tensor& b, const Tensor& out);
void add_bias(const Tensor& x, const Tensor& bias);
void route(const Tensor& scores, const Tensor& experts, const Tensor& weights);
void matmul_experts(std::span<const ExpertWeights> weights, const Tensor& x, const Tensor& experts,
                    std::span<const Tensor> outs, const Norm& norm);
// Of those weights that are multiplied with.
void expert_weight(const Weight& w, const Tensor& x, const Tensor& out);
void add_expert_bias(const Tensor& x, const Tensor& biases, const Tensor& experts);
void mix_experts(const Tensor& x, const Tensor& weights, const Tensor& out);

}  // namespace llama2cpp::op_checks
