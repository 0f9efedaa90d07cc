// The order is that of forward.cpp, from its end; attention and the MLP have files of their own. Where a model multiplies
// integers, or keeps keys and values in halves, gradients go straight through the rounding.
#include "model/backward.h"

#include <algorithm>
#include "model/unembed.h"

namespace llama2cpp {
namespace {

// Rows from the first to the last that have a gradient.
Range rows_with_any(const float* d, std::int64_t rows, std::int64_t width) {
  const auto any = [&](std::int64_t t) {
    const float* const row = d + t * width;
    return std::any_of(row, row + width, [](float x) { return x != 0.0F; });  // NaN is one
  };
  Range range{0, rows};
  while (range.begin < range.end && !any(range.begin)) ++range.begin;
  while (range.begin < range.end && !any(range.end - 1)) --range.end;
  return range;
}

void fill_zeros(const Tensor& x) {
  for (std::int64_t t = 0; t < x.rows(); ++t) std::fill_n(x.row(t), x.columns(), 0.0F);
}

// x / (its own scale), where x / scale is what a run had: [T, n], [T, 1], [T, 1] -> to [T, n]
void undo_scale(const Tensor& normalized, const Tensor& scale, const Tensor& own, const Tensor& to) {
  for (std::int64_t t = 0; t < to.rows(); ++t) {
    const float factor = *scale.row(t) / *own.row(t);
    std::transform(normalized.row(t), normalized.row(t) + to.columns(), to.row(t), [&](float x) { return x * factor; });
  }
}

}  // namespace

void Backward::see(Point point, std::int64_t i, const Tensor& d) {
  const HookSpan all = span();
  hooks.at(point, i, d, {&all, 1});
  if (stop.has(point, i)) fill_zeros(d);
}

void Backward::back(std::initializer_list<const Weight*> weights, std::initializer_list<Tensor> dys,
                    const Tensor& out) {
  ops.matmul_transposed({weights.begin(), weights.size()}, {dys.begin(), dys.size()}, out);
}

Backward::NormRun Backward::norm_run(NormPoints points, std::int64_t i) {
  if (!given.has(points.scale, i) && !given.has(points.normalized, i)) {
    return {tape[points.normalized], tape[points.scale], tape[points.normalized]};
  }
  const LayerTape& own = *unchanged;
  const Tensor direction = g.direction.slice(0, own[points.normalized].rows());
  undo_scale(own[points.normalized], tape[points.scale], own[points.scale], direction);
  return {own[points.normalized], tape[points.scale], direction};
}

void Backward::norm(const Tensor& d, Range rows, const Vector& gain, const NormRun& run, NormPoints points,
                    std::int64_t i) {
  const std::int64_t count = rows.end - rows.begin;
  const Tensor part = d.slice(rows.begin, count);
  const Tensor dscale = g.scale.slice(rows.begin, count);
  if (gain) be.normalize(part, {g.ones.slice(0, count), gain.view}, part);
  see(points.normalized, i, d);
  ops.norm_scale_gradient(part, run.normalized, run.scale, dscale);
  see(points.scale, i, g.scale);
  ops.norm_gradient(part, run.direction, run.scale, dscale);
  if (c.norm == NormKind::rms) return;
  const Tensor centered = g.centered.slice(0, count);  // the mean is taken from gradients, as from what they are of
  be.center(part, centered);
  be.scale(centered, 1.0F, part);
}

void Backward::logits(const float* x, const float* dlogits) {
  const auto tokens = static_cast<std::int64_t>(sequence.tokens.size());
  const std::int64_t last = c.n_layers - 1;
  const Range rows = rows_with_any(dlogits, tokens, c.vocab_size);
  const std::int64_t count = rows.end - rows.begin;
  fill_zeros(g.read);
  fill_zeros(g.scale);
  // The last norm again. Without rows there is nothing to go back from, and all gradients are zeros.
  a.resize(tokens, count);
  const Tensor from(const_cast<float*>(x) + rows.begin * c.dim, {count, c.dim});
  Tensor centered = from;
  if (c.norm != NormKind::rms) be.center(from, centered = a.centered.slice(0, count));
  const Tensor scale = a.scale.slice(0, count);
  const Tensor normalized = a.normalized.slice(0, count);
  be.rms_scale(centered, c.norm_eps, scale);
  be.normalize(centered, {scale, {}}, normalized);
  NormRun run{normalized, scale, normalized};
  Tensor read_by_output = normalized;
  if (given.has(kLnFinal.scale, last)) {
    run.scale = given.at(kLnFinal.scale, last, sequence.sequence).slice(rows.begin, count);
    run.direction = g.direction.slice(0, count);
    be.scale(normalized, 1.0F, run.direction);
    be.normalize(centered, {run.scale, {}}, normalized);
  }
  if (given.has(kLnFinal.normalized, last)) {
    read_by_output = given.at(kLnFinal.normalized, last, sequence.sequence).slice(rows.begin, count);
  }
  Tensor d(const_cast<float*>(dlogits) + rows.begin * c.vocab_size, {count, c.vocab_size});
  if (c.logits_cap > 0 && count > 0) {
    const Tensor input = g.added.slice(0, count);
    be.normalize(read_by_output, {g.ones.slice(0, count), w.norm.view}, input);
    if (w.norm_b) be.add_bias(input, w.norm_b.view);
    const Weight* const output[] = {&w.output};
    be.matmul(output, input, {&a.logits, 1});
    finish_logits(c, be, a.logits);
    be.sync();
    capped_logits.assign(d.row(0), d.row(0) + count * c.vocab_size);
    d = Tensor(capped_logits.data(), {count, c.vocab_size});
    ops.soft_cap_gradient(a.logits, c.logits_cap, d);
  }
  const Tensor read = g.read.slice(rows.begin, count);
  back({&w.output}, {d}, read);  // [R, vocab_size] -> [R, dim]
  scale_by(read, 1.0F / c.logits_scaling);
  norm(g.read, rows, w.norm, run, kLnFinal, last);
  be.scale(g.read, 1.0F, g.stream);
}

void Backward::layer(std::int64_t i, const float* x) {
  const LayerWeights& l = w.layers[static_cast<std::size_t>(i)];
  const LayerPlan& plan = model.plan(i);
  const auto tokens = static_cast<std::int64_t>(sequence.tokens.size());
  a.resize(tokens, 0);
  std::copy_n(x, tokens * c.dim, a.x.row(0));
  forward_to_go_back(model, {&sequence, 1}, a, forward_hooks, i);

  see(Point::resid_post, i, g.stream);
  mlp(l, i, g.read);
  if (plan.parallel) {  // both read the same
    attention(l, plan, i, g.also_read);
    be.add(g.read, g.also_read, g.read);
  } else {
    before(plan, l.ffn_norm, kLn2, i);
    see(Point::resid_mid, i, g.stream);
    attention(l, plan, i, g.read);
  }
  before(plan, l.attention_norm, kLn1, i);
  see(Point::resid_pre, i, g.stream);
}

// What a half of a layer adds, g.added: back to before its norm and its multiplier.
void Backward::norm_after(const Vector& gain, NormPoints points, std::int64_t i) {
  scale_by(g.added, c.residual_multiplier);
  if (model.plan(i).norm_after) norm(g.added, all_rows(), gain, norm_run(points, i), points, i);
}

// What a half of a layer reads gets g.read: the residual stream, by its norm.
void Backward::before(const LayerPlan& plan, const Vector& gain, NormPoints points, std::int64_t i) {
  if (plan.norm_before) norm(g.read, all_rows(), gain, norm_run(points, i), points, i);
  be.add(g.stream, g.read, g.stream);
}

}  // namespace llama2cpp
