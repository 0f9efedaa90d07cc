// One allocation for the gradients of one sequence.
#include <algorithm>

#include "model/backward.h"
#include "model/views.h"

namespace llama2cpp {
namespace {

constexpr double kGradientViews = 22;

double floats_of(const Config& c, std::int64_t tokens, bool patterns, bool results) {
  const auto t = static_cast<double>(tokens);
  const double row = static_cast<double>(6 * c.dim + 2 + 2 * c.n_heads + c.rotary() / 2 + 2 * c.q_dim() +
                                         2 * c.kv_dim() + 2 * c.mlps() * c.hidden_dim +
                                         (c.n_experts > 0 ? c.n_experts + c.n_experts_used * (2 + c.dim) : 0));
  const double pattern = patterns ? 2 * static_cast<double>(c.n_heads) * t : 0.0;
  const double result = results ? static_cast<double>(c.n_heads * c.dim) : 0.0;
  return t * (row + pattern + result) + kGradientViews * static_cast<double>(Views::kLine);
}

}  // namespace

double GradientBuffers::bytes(const Config& config, std::int64_t tokens, bool patterns, bool results) {
  return floats_of(config, tokens, patterns, results) * sizeof(float);
}

GradientBuffers::GradientBuffers(const Config& c, Backend& backend, std::int64_t tokens, bool with_patterns,
                                 bool with_results)
    : memory_(backend.alloc(static_cast<std::size_t>(bytes(c, tokens, with_patterns, with_results)))) {
  Views view(memory_);
  stream = view(tokens, c.dim);
  added = view(tokens, c.dim);
  read = view(tokens, c.dim);
  also_read = view(tokens, c.dim);
  centered = view(tokens, c.dim);
  direction = view(tokens, c.dim);
  scale = view(tokens, 1);
  ones = view(tokens, 1);
  std::fill_n(ones.row(0), tokens, 1.0F);
  head_scale = view(tokens * c.n_heads, 1);
  head_dscale = view(tokens * c.n_heads, 1);
  minus_sin = view(tokens, c.rotary() / 2);
  q = view(tokens, c.q_dim());
  z = view(tokens, c.q_dim());
  k = view(tokens, c.kv_dim());
  v = view(tokens, c.kv_dim());
  gate = view(tokens * c.mlps(), c.hidden_dim);
  up = view(tokens * c.mlps(), c.hidden_dim);
  if (c.n_experts > 0) {
    expert_out = view(tokens * c.n_experts_used, c.dim);
    expert_weights = view(tokens, c.n_experts_used);
    routing = view(tokens, c.n_experts);
    place_ones = view(tokens, c.n_experts_used);
    std::fill_n(place_ones.row(0), tokens * c.n_experts_used, 1.0F);
  }
  if (with_patterns) {
    pattern = view(c.n_heads * tokens, tokens);
    scores = view(c.n_heads * tokens, tokens);
    for (Tensor* const x : {&pattern, &scores}) *x = Tensor(x->row(0), {c.n_heads, tokens, tokens});
  }
  if (with_results) results = view(tokens, c.n_heads * c.dim);
}

}  // namespace llama2cpp
