// Back through the MLP: the one MLP, or the experts that the router chose, whose choice is taken as it is.
#include <algorithm>
#include <vector>

#include "model/backward.h"

namespace llama2cpp {
namespace {

// [T * k, n] as hooks see it: [T, k * n].
Tensor of_tokens(const Tensor& x, std::int64_t k) { return {x.row(0), {x.rows() / k, k * x.columns()}}; }

}  // namespace

void Backward::mlp(const LayerWeights& l, std::int64_t i, const Tensor& read) {
  be.scale(g.stream, 1.0F, g.added);
  see(Point::mlp_out, i, g.added);
  norm_after(l.ffn_post_norm, kLn2Post, i);
  if (c.n_experts > 0) return experts(l, i, read);
  const Tensor& gate = tape[Point::mlp_pre];
  back({&l.w2}, {g.added}, g.gate);  // [T, dim] -> [T, hidden_dim]
  see(Point::mlp_post, i, g.gate);
  if (c.gated) {
    ops.gated_gradient(c.activation, gate, a.up, g.gate, g.up);
    see(Point::mlp_pre_linear, i, g.up);
    see(Point::mlp_pre, i, g.gate);
    back({&l.w1, &l.w3}, {g.gate, g.up}, read);
  } else {
    ops.activate_gradient(c.activation, gate, g.gate);
    see(Point::mlp_pre, i, g.gate);
    back({&l.w3}, {g.gate}, read);
  }
}

void Backward::experts(const LayerWeights& l, std::int64_t i, const Tensor& read) {
  const std::int64_t k = c.n_experts_used;
  ops.mix_experts_gradient(g.added, a.expert_out, a.expert_weights, g.expert_out, g.expert_weights);
  see(Point::expert_out, i, of_tokens(g.expert_out, k));
  const ExpertWeights outputs[] = {l.e2};
  ops.matmul_experts_transposed(outputs, {&g.expert_out, 1}, a.expert_ids,
                                g.gate);  // [T * k, dim] -> [T * k, hidden_dim]
  see(Point::mlp_post, i, of_tokens(g.gate, k));
  const Tensor gate(tape[Point::mlp_pre].row(0), {g.gate.rows(), c.hidden_dim});
  ops.gated_gradient(c.activation, gate, a.up, g.gate, g.up);
  see(Point::mlp_pre_linear, i, of_tokens(g.up, k));
  see(Point::mlp_pre, i, of_tokens(g.gate, k));
  const ExpertWeights inputs[] = {l.e1, l.e3};
  const Tensor dys[] = {g.gate, g.up};
  ops.matmul_experts_transposed(inputs, dys, a.expert_ids, g.expert_out);  // -> [T * k, dim]
  be.mix_experts(g.expert_out, g.place_ones, read);                        // -> [T, dim]
  router(l, i, g.also_read);
  be.add(read, g.also_read, read);
}

// From the gradients of the chosen experts' weights to what the router reads.
void Backward::router(const LayerWeights& l, std::int64_t i, const Tensor& read) {
  const std::int64_t tokens = a.expert_ids.rows();
  const std::int64_t k = c.n_experts_used;
  if (hooks.active(Point::expert_indices, i)) {
    std::vector<float> none(static_cast<std::size_t>(tokens * k));  // a choice has no gradient
    see(Point::expert_indices, i, Tensor(none.data(), {tokens, k}));
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::fill_n(g.routing.row(t), c.n_experts, 0.0F);
    for (std::int64_t j = 0; j < k; ++j) g.routing.row(t)[a.expert_ids.integers(t)[j]] = g.expert_weights.row(t)[j];
  }
  see(Point::expert_weights, i, g.routing);
  const Routing routing{c.router_order, c.router_renormalise};
  Tensor chosen = a.expert_ids;  // by the router: hooks may have sent tokens elsewhere
  std::vector<std::int32_t> ids;
  if (given.has(Point::expert_weights, i) || given.has(Point::expert_indices, i)) {
    ids.resize(static_cast<std::size_t>(tokens * k));
    chosen = Tensor(ids.data(), DType::i32, {tokens, k});
    be.route(a.router_scores, routing, chosen, g.expert_weights);
    be.sync();
  }
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t j = 0; j < k; ++j) g.expert_weights.row(t)[j] = g.routing.row(t)[chosen.integers(t)[j]];
  }
  ops.route_gradient(a.router_scores, routing, chosen, g.expert_weights, g.routing);
  see(Point::router_scores, i, g.routing);
  back({&l.router}, {g.routing}, read);  // [T, n_experts] -> [T, dim]
}

}  // namespace llama2cpp
