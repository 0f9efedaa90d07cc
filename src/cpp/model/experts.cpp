// Each op reads the weights of all experts that are wanted once, whatever number of tokens goes to each. What hooks see of
// the routing is made where one looks; if one changes it, tokens go where it says.
#include "model/experts.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/check.h"

namespace llama2cpp {
namespace {

// [T * k, n] as hooks see it: [T, k * n].
Tensor by_token(const Tensor& x, std::int64_t k) { return {x.row(0), {x.rows() / k, k * x.columns()}}; }

// The k experts of the largest weights, where a hook gave one a weight that the token does not go to.
void choose_again(const Config& c, const float* weights, std::int32_t* ids) {
  const auto k = static_cast<std::ptrdiff_t>(c.n_experts_used);
  std::vector<std::int32_t> all(static_cast<std::size_t>(c.n_experts));
  std::iota(all.begin(), all.end(), 0);
  const auto chosen = [&](std::int32_t e) { return std::find(ids, ids + k, e) != ids + k; };
  if (std::none_of(all.begin(), all.end(), [&](std::int32_t e) { return weights[e] != 0.0F && !chosen(e); })) return;
  std::stable_sort(all.begin(), all.end(), [&](std::int32_t x, std::int32_t y) { return weights[x] > weights[y]; });
  std::copy_n(all.begin(), k, ids);
  std::sort(ids, ids + k);
}

void set_ids(const Config& c, const float* shown, std::int32_t* ids) {
  for (std::int64_t j = 0; j < c.n_experts_used; ++j) {
    const float id = shown[j];
    LLAMA2CPP_CHECK(id >= 0.0F && id < static_cast<float>(c.n_experts) && id == std::floor(id),
                    "[hook_expert_indices] a hook made an index ", id, ", expected a whole number from 0 to ",
                    c.n_experts - 1);
    ids[j] = static_cast<std::int32_t>(id);
  }
  std::sort(ids, ids + c.n_experts_used);
  LLAMA2CPP_CHECK(std::adjacent_find(ids, ids + c.n_experts_used) == ids + c.n_experts_used,
                  "[hook_expert_indices] a hook sent a token to the same expert twice");
}

void show_routing(const Config& c, Backend& backend, const Activations& a, std::int64_t layer,
                  std::span<const HookSpan> spans, const Hooks& hooks) {
  const bool weights_seen = hooks.active(Point::expert_weights, layer);
  const bool ids_seen = hooks.active(Point::expert_indices, layer);
  if (!weights_seen && !ids_seen) return;
  backend.sync();
  const std::int64_t rows = a.expert_ids.rows();
  const std::int64_t k = c.n_experts_used;
  const Tensor& all = a.routing_shown;  // [T, n_experts]
  for (std::int64_t t = 0; t < rows; ++t) {
    std::fill_n(all.row(t), c.n_experts, 0.0F);
    for (std::int64_t j = 0; j < k; ++j) all.row(t)[a.expert_ids.integers(t)[j]] = a.expert_weights.row(t)[j];
  }
  hooks.at(Point::expert_weights, layer, all, spans);
  if (hooks.edits(Point::expert_weights, layer)) {
    for (std::int64_t t = 0; t < rows; ++t) choose_again(c, all.row(t), a.expert_ids.integers(t));
  }
  if (ids_seen) {
    std::vector<float> shown(static_cast<std::size_t>(rows * k));
    const Tensor view(shown.data(), {rows, k});
    for (std::int64_t t = 0; t < rows; ++t) {
      std::transform(a.expert_ids.integers(t), a.expert_ids.integers(t) + k, view.row(t),
                     [](std::int32_t e) { return static_cast<float>(e); });
    }
    hooks.at(Point::expert_indices, layer, view, spans);
    for (std::int64_t t = 0; hooks.edits(Point::expert_indices, layer) && t < rows; ++t) {
      set_ids(c, view.row(t), a.expert_ids.integers(t));
    }
  }
  for (std::int64_t t = 0; t < rows; ++t) {
    for (std::int64_t j = 0; j < k; ++j) a.expert_weights.row(t)[j] = all.row(t)[a.expert_ids.integers(t)[j]];
  }
}

}  // namespace

void run_experts(const Config& c, Backend& backend, const LayerWeights& weights, const Tensor& x, const Norm& norm,
                 Activations& a, std::int64_t layer, std::span<const HookSpan> spans, const Hooks& hooks) {
  const std::int64_t k = c.n_experts_used;
  const auto see = [&](Point point, const Tensor& places) { hooks.at(point, layer, by_token(places, k), spans); };
  const auto add_bias = [&](const Tensor& places, const Vector& biases) {  // [n_experts, n], in place
    if (biases) backend.add_expert_bias(places, biases.view, a.expert_ids);
  };
  const Weight* const router[] = {&weights.router};
  backend.matmul(router, x, {&a.router_scores, 1}, norm);  // [T, dim] -> [T, n_experts]
  if (weights.router_b) backend.add_bias(a.router_scores, weights.router_b.view);
  hooks.at(Point::router_scores, layer, a.router_scores, spans);
  backend.route(a.router_scores, {c.router_order, c.router_renormalise}, a.expert_ids, a.expert_weights);
  show_routing(c, backend, a, layer, spans, hooks);

  const ExpertWeights inputs[] = {weights.e1, weights.e3};
  const Tensor outs[] = {a.gate, a.up};
  backend.matmul_experts(inputs, x, a.expert_ids, outs, norm);  // [T, dim] -> [T * k, hidden_dim] twice
  add_bias(a.gate, weights.e1_b);
  add_bias(a.up, weights.e3_b);
  see(Point::mlp_pre, a.gate);
  see(Point::mlp_pre_linear, a.up);
  backend.gated(c.activation, a.gate, a.up, a.gate);
  see(Point::mlp_post, a.gate);
  const ExpertWeights outputs[] = {weights.e2};
  backend.matmul_experts(outputs, a.gate, a.expert_ids, {&a.expert_out, 1});  // -> [T * k, dim]
  add_bias(a.expert_out, weights.e2_b);
  see(Point::expert_out, a.expert_out);
  backend.mix_experts(a.expert_out, a.expert_weights, a.mlp_out);  // -> [T, dim]
}

}  // namespace llama2cpp
