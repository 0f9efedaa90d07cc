// What happens where a hook looks: the activation is cut into sequences and heads, shown, and put back.
#include "model/hooks.h"

#include <string_view>

#include "core/check.h"

namespace llama2cpp {
namespace {

struct PointFacts {
  std::string_view name;  // after "blocks.{layer}."
  enum class Shape : std::uint8_t { row, query_heads, kv_heads, pattern } shape;
  bool rotary;      // in rotary order: shown as half_split
  bool in_a_block;  // has a layer in its name
};

using Shape = PointFacts::Shape;

constexpr PointFacts kFacts[kPoints] = {
    {"hook_embed", Shape::row, false, false},
    {"hook_resid_pre", Shape::row, false, true},
    {"ln1.hook_scale", Shape::row, false, true},
    {"ln1.hook_normalized", Shape::row, false, true},
    {"attn.hook_q", Shape::query_heads, true, true},
    {"attn.hook_k", Shape::kv_heads, true, true},
    {"attn.hook_v", Shape::kv_heads, false, true},
    {"attn.hook_rot_q", Shape::query_heads, true, true},
    {"attn.hook_rot_k", Shape::kv_heads, true, true},
    {"attn.hook_attn_scores", Shape::pattern, false, true},
    {"attn.hook_pattern", Shape::pattern, false, true},
    {"attn.hook_z", Shape::query_heads, false, true},
    {"hook_attn_out", Shape::row, false, true},
    {"hook_resid_mid", Shape::row, false, true},
    {"ln2.hook_scale", Shape::row, false, true},
    {"ln2.hook_normalized", Shape::row, false, true},
    {"mlp.hook_pre", Shape::row, false, true},
    {"mlp.hook_pre_linear", Shape::row, false, true},
    {"mlp.hook_post", Shape::row, false, true},
    {"hook_mlp_out", Shape::row, false, true},
    {"hook_resid_post", Shape::row, false, true},
    {"ln_final.hook_scale", Shape::row, false, false},
    {"ln_final.hook_normalized", Shape::row, false, false},
};

const PointFacts& facts(Point point) { return kFacts[static_cast<std::size_t>(point)]; }

// heads [n][head_dim]: from pairs (2j, 2j + 1) to pairs (j, j + head_dim / 2), or back.
void reorder(const float* from, float* to, std::int64_t n, std::int64_t head_dim, bool to_half_split) {
  for (std::int64_t head = 0; head < n; ++head, from += head_dim, to += head_dim) {
    for (std::int64_t j = 0; j < head_dim / 2; ++j) {
      for (std::int64_t part = 0; part < 2; ++part) {
        const std::int64_t interleaved = 2 * j + part;
        const std::int64_t half_split = j + part * (head_dim / 2);
        if (to_half_split) {
          to[half_split] = from[interleaved];
        } else {
          to[interleaved] = from[half_split];
        }
      }
    }
  }
}

}  // namespace

std::string point_name(Point point, std::int64_t layer) {
  return facts(point).in_a_block ? cat("blocks.", layer, ".", facts(point).name) : std::string(facts(point).name);
}

void Hooks::call(Point point, std::int64_t layer, const Tensor& activation, std::span<const HookSpan> spans) const {
  const PointFacts& fact = facts(point);
  const Backend::Pause others_may_run(*backend_);
  for (const HookSpan& span : spans) {
    if (fact.shape == Shape::pattern) {  // one tensor for one sequence: forward.cpp calls once for each
      callback_(point, layer, activation, span);
      continue;
    }
    const Tensor part = activation.slice(span.row, span.count);
    if (fact.shape == Shape::row) {
      callback_(point, layer, part, span);
      continue;
    }
    const std::int64_t head_dim = config_->head_dim;
    const std::int64_t heads = part.columns() / head_dim;
    const Tensor by_head(part.row(0), {span.count, heads, head_dim});
    if (!fact.rotary || config_->rope_style == RopeStyle::half_split) {
      callback_(point, layer, by_head, span);
      continue;
    }
    std::vector<float> shown(static_cast<std::size_t>(span.count * heads * head_dim));
    reorder(part.row(0), shown.data(), span.count * heads, head_dim, true);
    callback_(point, layer, Tensor(shown.data(), {span.count, heads, head_dim}), span);
    reorder(shown.data(), part.row(0), span.count * heads, head_dim, false);
  }
}

}  // namespace llama2cpp
