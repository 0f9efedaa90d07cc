// Both kinds of norms are the same ops: LayerNorm is RMSNorm of x - mean(x), plus a bias.
#include "model/norms.h"

namespace llama2cpp {

Input Norms::of(Tensor x, NormWeights weights, NormPoints points, std::int64_t layer, std::span<const HookSpan> spans) {
  if (c_.norm != NormKind::rms) {
    const Tensor centered = a_.centered.slice(0, x.rows());
    be_.center(x, centered);
    x = centered;
  }
  const Tensor scale = a_.scale.slice(0, x.rows());
  be_.rms_scale(x, c_.norm_eps, scale);  // [T, dim] -> [T, 1]
  hooks_.at(points.scale, layer, scale, spans);
  Norm rest{scale, weights.gain.view};
  const Tensor normalized = a_.normalized.slice(0, x.rows());
  if (hooks_.active(points.normalized, layer)) {
    be_.normalize(x, {scale, {}}, normalized);  // [T, dim]
    hooks_.at(points.normalized, layer, normalized, spans);
    x = normalized;
    rest.scale = {};
  }
  if (!weights.bias) return {x, rest};
  be_.normalize(x, {rest.scale ? rest.scale : a_.ones.slice(0, x.rows()), rest.gain}, normalized);
  be_.add_bias(normalized, weights.bias.view);
  return {normalized};
}

void Norms::in_place(const Tensor& x, NormWeights weights, NormPoints points, std::int64_t layer,
                     std::span<const HookSpan> spans) {
  const Input input = of(x, weights, points, layer, spans);
  be_.normalize(input.x, {input.norm.scale ? input.norm.scale : a_.ones.slice(0, x.rows()), input.norm.gain}, x);
}

void Norms::of_heads(const LayerWeights& weights, std::int64_t layer, std::span<const HookSpan> spans) {
  norm_rows(a_.q, weights.q_norm);
  norm_rows(a_.k, weights.k_norm);
  hooks_.at(Point::q_normed, layer, a_.q, spans);
  hooks_.at(Point::k_normed, layer, a_.k, spans);
}

// x [T, groups * n], gain [n]
void Norms::norm_rows(const Tensor& x, const Vector& gain) {
  const std::int64_t n = gain.view.columns();
  const std::int64_t groups = x.rows() * (x.columns() / n);
  const Tensor by_group(x.row(0), {groups, n});
  const Tensor scale = a_.head_scale.slice(0, groups);
  be_.rms_scale(by_group, c_.norm_eps, scale);
  be_.normalize(by_group, {scale, gain.view}, by_group);
}

}  // namespace llama2cpp
