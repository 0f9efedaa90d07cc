// Back through attention: wo, the pattern, rotary embedding, norms of queries and keys, and their matrices.
#include <algorithm>

#include "model/backward.h"

namespace llama2cpp {

void Backward::attention(const LayerWeights& l, const LayerPlan& plan, std::int64_t i, const Tensor& read) {
  be.scale(g.stream, 1.0F, g.added);
  see(Point::attn_out, i, g.added);
  norm_after(l.attention_post_norm, kLn1Post, i);
  results(i);
  back({&l.wo}, {g.added}, g.z);  // [T, dim] -> [T, n_heads * head_dim]
  see(Point::z, i, g.z);

  AttentionSpan span;
  span.count = all_rows().end;
  span.keys = sequence.kv->keys(i);
  span.values = sequence.kv->values(i);
  span.window = plan.window;
  span.divisor = plan.score_divisor;
  span.score_cap = plan.score_cap;
  span.sinks = l.sinks.view;
  const AttentionGradients gradients{.dz = g.z,
                                     .dq = g.q,
                                     .dk = g.k,
                                     .dv = g.v,
                                     .dpattern = hooks.active(Point::pattern, i) ? g.pattern : Tensor(),
                                     .dscores = hooks.active(Point::attn_scores, i) ? g.scores : Tensor(),
                                     .through_pattern = !stop.has(Point::pattern, i),
                                     .through_scores = !stop.has(Point::attn_scores, i),
                                     .scores = given.at(Point::attn_scores, i, sequence.sequence),
                                     .pattern = given.at(Point::pattern, i, sequence.sequence)};
  ops.attention_gradient(a.q, span, gradients);
  const HookSpan all = this->span();
  if (gradients.dpattern) hooks.at(Point::pattern, i, g.pattern, {&all, 1});
  if (gradients.dscores) hooks.at(Point::attn_scores, i, g.scores, {&all, 1});

  if (plan.qk_norm_after_rope) heads(l, i, Point::rot_q, Point::rot_k);
  see(Point::rot_q, i, g.q);
  see(Point::rot_k, i, g.k);
  if (plan.rope) turn(plan);
  if (plan.qk_norm_before_rope) heads(l, i, Point::q, Point::k);
  see(Point::q, i, g.q);
  see(Point::k, i, g.k);
  see(Point::v, i, g.v);
  back({&l.wq, &l.wk, &l.wv}, {g.q, g.k, g.v}, read);
}

// What each head adds is a part of one sum, so all get what the sum gets.
void Backward::results(std::int64_t i) {
  if (hooks.active(Point::result, i)) {
    const float factor = 1.0F / c.residual_multiplier;  // they are shown as they are added
    be.parallel_for(g.added.rows(), g.results.rows() * g.results.columns() * 4,
                    [&](std::int64_t begin, std::int64_t end) {
                      for (std::int64_t t = begin; t < end; ++t) {
                        float* to = g.results.row(t);
                        const float* const from = g.added.row(t);
                        for (std::int64_t head = 0; head < c.n_heads; ++head, to += c.dim) {
                          std::transform(from, from + c.dim, to, [&](float x) { return x * factor; });
                        }
                      }
                    });
    const HookSpan all = span();
    hooks.at(Point::result, i, g.results, {&all, 1});
  }
  if (stop.has(Point::result, i)) std::fill_n(g.added.row(0), g.added.rows() * g.added.columns(), 0.0F);
}

// By the same angles the other way.
void Backward::turn(const LayerPlan& plan) {
  const Tensor& cos = plan.local_rope ? a.local_cos : a.cos;
  const Tensor& sin = plan.local_rope ? a.local_sin : a.sin;
  be.scale(sin, -1.0F, g.minus_sin);
  be.rope(g.q, cos, g.minus_sin, c.head_dim, plan.rope_style);
  be.rope(g.k, cos, g.minus_sin, c.head_dim, plan.rope_style);
}

// q, k: the points that have what was normalised.
void Backward::heads(const LayerWeights& l, std::int64_t i, Point q, Point k) {
  see(Point::q_normed, i, g.q);
  see(Point::k_normed, i, g.k);
  heads(g.q, tape[q], l.q_norm);
  heads(g.k, tape[k], l.k_norm);
}

// d and x [T, groups * n], gain [n]
void Backward::heads(const Tensor& d, const Tensor& x, const Vector& gain) {
  const std::int64_t n = gain.view.columns();
  const std::int64_t groups = d.rows() * (d.columns() / n);
  const Tensor by_group(d.row(0), {groups, n});
  const Tensor normalized(x.row(0), {groups, n});
  const Tensor scale = g.head_scale.slice(0, groups);
  const Tensor dscale = g.head_dscale.slice(0, groups);
  std::fill_n(dscale.row(0), groups, 1.0F);
  be.normalize(by_group, {dscale, gain.view}, by_group);
  be.rms_scale(normalized, c.norm_eps, scale);
  be.normalize(normalized, {scale, {}}, normalized);  // in place: the tape has it for this alone
  ops.norm_scale_gradient(by_group, normalized, scale, dscale);
  ops.norm_gradient(by_group, normalized, scale, dscale);
}

}  // namespace llama2cpp
