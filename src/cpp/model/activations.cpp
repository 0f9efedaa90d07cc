// One allocation for all activations of a forward; logits apart, since only few rows have them.
#include "model/activations.h"

#include "core/check.h"
#include "core/memory_needs.h"

namespace llama2cpp {

Activations::Activations(const Config& config, Backend& backend, std::int64_t capacity)
    : config_(config), backend_(backend), capacity_(capacity) {
  const Config& c = config_;
  // x, normalized, attn_out, mlp_out, last; q, z; k, v; gate, up; cos and sin; scale
  const std::int64_t row = 5 * c.dim + 2 * c.q_dim() + 2 * c.kv_dim() + 2 * c.hidden_dim + c.head_dim + 1;
  const double bytes = static_cast<double>(capacity) * static_cast<double>(row) * sizeof(float);
  if (bytes >= kWorthChecking) {
    need_memory(bytes, cat("a pass of ", capacity, " tokens at once"), "", "use fewer tokens, or hooks that only look");
  }
  memory_ = backend_.alloc(static_cast<std::size_t>(capacity * row) * sizeof(float));
}

void Activations::resize(std::int64_t rows, std::int64_t logit_rows, float* to) {
  LLAMA2CPP_CHECK(rows <= capacity_, "activations for ", capacity_, " rows, ", rows, " were asked for");
  const Config& c = config_;
  auto* next = reinterpret_cast<float*>(memory_.data());
  const auto view = [&](std::int64_t n, std::int64_t width) {
    Tensor tensor(next, {n, width});
    next += n * width;
    return tensor;
  };
  x = view(rows, c.dim);
  scale = view(rows, 1);
  normalized = view(rows, c.dim);
  cos = view(rows, c.head_dim / 2);
  sin = view(rows, c.head_dim / 2);
  q = view(rows, c.q_dim());
  k = view(rows, c.kv_dim());
  v = view(rows, c.kv_dim());
  z = view(rows, c.q_dim());
  attn_out = view(rows, c.dim);
  gate = view(rows, c.hidden_dim);
  up = view(rows, c.hidden_dim);
  mlp_out = view(rows, c.dim);
  last = view(logit_rows, c.dim);

  const std::size_t bytes = static_cast<std::size_t>(logit_rows * c.vocab_size) * sizeof(float);
  if (to == nullptr && logits_memory_.size() < bytes) logits_memory_ = backend_.alloc(bytes);
  logits = Tensor(to == nullptr ? reinterpret_cast<float*>(logits_memory_.data()) : to, {logit_rows, c.vocab_size});
}

void Activations::add_results(std::int64_t width) {
  const std::int64_t n = x.rows();
  const std::int64_t results_width = config_.n_heads * config_.dim;
  const auto bytes = static_cast<std::size_t>(capacity_ * (results_width + config_.q_dim())) * sizeof(float);
  if (!results_memory_) results_memory_ = backend_.alloc(bytes);
  auto* const memory = reinterpret_cast<float*>(results_memory_.data());
  results = Tensor(memory, {n, results_width});
  one_head = Tensor(memory + n * results_width, {n, width});
}

}  // namespace llama2cpp
