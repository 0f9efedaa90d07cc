// One allocation for all activations of a forward; logits apart, since only few rows have them.
#include "model/activations.h"

#include "core/check.h"
#include "core/memory_needs.h"
#include "model/views.h"

namespace llama2cpp {

namespace {

constexpr std::int64_t kLine = Views::kLine;
constexpr std::int64_t kViews = 24;

// router_scores, routing_shown; expert_ids, expert_weights; expert_out
std::int64_t experts_floats(const Config& c) { return 2 * c.n_experts + c.n_experts_used * (2 + c.dim); }

// x, normalized, centered, attn_out, mlp_out, last; q, z; k, v; gate, up; cos and sin, twice; scale and ones; head_scale
std::int64_t row_floats(const Config& c) {
  return 6 * c.dim + 2 * c.q_dim() + 2 * c.kv_dim() + 2 * c.mlps() * c.hidden_dim + 2 * c.head_dim + 2 + c.n_heads +
         experts_floats(c);
}

}  // namespace

double Activations::bytes(const Config& config, std::int64_t rows) {
  const double floats = static_cast<double>(rows) * static_cast<double>(row_floats(config));
  return (floats + static_cast<double>(kViews * kLine)) * sizeof(float);
}

Activations::Activations(const Config& config, Backend& backend, std::int64_t capacity)
    : config_(config), backend_(backend), capacity_(capacity) {
  const double needed = bytes(config, capacity);
  if (needed >= kWorthChecking) {
    need_memory(needed, cat("a pass of ", capacity, " tokens at once"), "", "use fewer tokens, or hooks that only look",
                backend.memory_left());
  }
  memory_ = backend_.alloc(static_cast<std::size_t>(needed));
}

void Activations::resize(std::int64_t rows, std::int64_t logit_rows, float* to, bool with_logits) {
  LLAMA2CPP_CHECK(rows <= capacity_, "activations for ", capacity_, " rows, ", rows, " were asked for");
  const Config& c = config_;
  Views view(memory_);
  x = view(rows, c.dim);
  scale = view(rows, 1);
  ones = view(rows, 1);
  head_scale = view(rows * c.n_heads, 1);
  normalized = view(rows, c.dim);
  centered = view(rows, c.dim);
  cos = view(rows, c.rotary() / 2);
  sin = view(rows, c.rotary() / 2);
  local_cos = view(rows, c.rotary() / 2);
  local_sin = view(rows, c.rotary() / 2);
  q = view(rows, c.q_dim());
  k = view(rows, c.kv_dim());
  v = view(rows, c.kv_dim());
  z = view(rows, c.q_dim());
  attn_out = view(rows, c.dim);
  gate = view(rows * c.mlps(), c.hidden_dim);
  up = view(rows * c.mlps(), c.hidden_dim);
  mlp_out = view(rows, c.dim);
  last = view(logit_rows, c.dim);
  if (c.n_experts > 0) {
    router_scores = view(rows, c.n_experts);
    routing_shown = view(rows, c.n_experts);
    expert_weights = view(rows, c.n_experts_used);
    expert_ids = view(rows, c.n_experts_used);
    expert_ids.dtype = DType::i32;
    expert_out = view(rows * c.n_experts_used, c.dim);
  }

  if (!with_logits) return;
  const std::size_t bytes = static_cast<std::size_t>(logit_rows * c.vocab_size) * sizeof(float);
  if (to == nullptr && logits_memory_.size() < bytes) logits_memory_ = backend_.alloc(bytes);
  logits = Tensor(to == nullptr ? reinterpret_cast<float*>(logits_memory_.data()) : to, {logit_rows, c.vocab_size});
}

Activations Activations::of_rows(Range rows) const {
  Activations part = *this;
  const std::int64_t all = x.rows();
  for (Tensor* const view : {&part.x,
                             &part.scale,
                             &part.ones,
                             &part.head_scale,
                             &part.normalized,
                             &part.centered,
                             &part.cos,
                             &part.sin,
                             &part.local_cos,
                             &part.local_sin,
                             &part.q,
                             &part.k,
                             &part.v,
                             &part.z,
                             &part.attn_out,
                             &part.gate,
                             &part.up,
                             &part.mlp_out,
                             &part.router_scores,
                             &part.expert_ids,
                             &part.expert_weights,
                             &part.expert_out,
                             &part.routing_shown}) {
    if (!*view) continue;
    const std::int64_t each = view->rows() / all;  // of heads or experts
    *view = view->slice(rows.begin * each, (rows.end - rows.begin) * each);
  }
  return part;
}

void Activations::add_results(std::int64_t width) {
  const std::int64_t n = x.rows();
  const std::int64_t results_width = config_.n_heads * config_.dim;
  const std::int64_t floats = capacity_ * (results_width + config_.q_dim()) + 2 * kLine;
  if (!results_memory_) results_memory_ = backend_.alloc(static_cast<std::size_t>(floats) * sizeof(float));
  Views view(results_memory_);
  results = view(n, results_width);
  one_head = view(n, width);
}

}  // namespace llama2cpp
