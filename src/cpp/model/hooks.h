// Hooks: the one observer of a forward. forward.cpp calls at(point, layer, tensor) after each op; with nothing to look
// at that is one test of a bit.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/config.h"
#include "core/tensor.h"

namespace llama2cpp {

// Places where a hook may look, in the order of the forward. T tokens, dim d, H query heads, K kv heads.
enum class Point : std::uint8_t {
  embed,           // [T, d]         layer 0 only
  resid_pre,       // [T, d]
  ln1_scale,       // [T, 1]
  ln1_normalized,  // [T, d]         before the gain
  q,               // [T, H, head_dim]  before rotary; q, k, rot_q, rot_k are always shown in half-split order
  k,               // [T, K, head_dim]
  v,               // [T, K, head_dim]
  rot_q,           // [T, H, head_dim]  after rotary
  rot_k,           // [T, K, head_dim]
  attn_scores,     // [H, T, position + T]  masked ones are -inf
  pattern,         // [H, T, position + T]
  z,               // [T, H, head_dim]
  attn_out,        // [T, d]
  resid_mid,       // [T, d]
  ln2_scale,       // [T, 1]
  ln2_normalized,  // [T, d]
  mlp_pre,         // [T, hidden]    the gate, w1 x
  mlp_pre_linear,  // [T, hidden]    w3 x
  mlp_post,        // [T, hidden]    silu(gate) * up
  mlp_out,         // [T, d]
  resid_post,      // [T, d]
  ln_final_scale,  // [rows with logits, 1]   layer n_layers - 1 only
  ln_final_normalized,
};
inline constexpr int kPoints = static_cast<int>(Point::ln_final_normalized) + 1;

// TransformerLens's name: "blocks.3.attn.hook_pattern", "hook_embed", "ln_final.hook_scale".
std::string point_name(Point point, std::int64_t layer);

// Rows of a pass that are one sequence's, for a hook's eyes: hooks fire once for each.
struct HookSpan {
  std::int64_t row = 0;
  std::int64_t count = 0;
  std::int64_t position = 0;  // of the first row
  std::size_t sequence = 0;   // its index in the pass
};

class Hooks {
 public:
  // Sees one sequence's part of an activation and may write to it; must not keep the tensor's pointer. Runs without the
  // backend's lease, so that it may use other sessions.
  using Callback = std::function<void(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span)>;

  Hooks() = default;  // looks at nothing
  Hooks(const Config& config, Backend& backend, Callback callback)
      : callback_(std::move(callback)),
        points_(static_cast<std::size_t>(config.n_layers), 0),
        config_(&config),
        backend_(&backend) {}

  void watch(Point point, std::int64_t layer) { points_[static_cast<std::size_t>(layer)] |= bit(point); }

  bool any() const { return !points_.empty(); }
  bool active(Point point, std::int64_t layer) const {
    return any() && (points_[static_cast<std::size_t>(layer)] & bit(point)) != 0;
  }

  // activation [T, ...]: rows are tokens. Calls back once for each span.
  void at(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans) const {
    if (active(point, layer)) [[unlikely]]
      call(point, layer, activation, spans);
  }

 private:
  static std::uint32_t bit(Point point) { return std::uint32_t{1} << static_cast<int>(point); }
  void call(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans) const;

  Callback callback_;
  std::vector<std::uint32_t> points_;  // [n_layers] a bit for each Point
  const Config* config_ = nullptr;
  Backend* backend_ = nullptr;
};

}  // namespace llama2cpp
