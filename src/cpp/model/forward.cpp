// What a Llama computes, from token ids to logits. The only place that knows the architecture.
#include "model/forward.h"

#include <algorithm>

#include "model/experts.h"
#include "model/head_results.h"
#include "model/norms.h"
#include "model/pass_rows.h"
#include "model/products.h"
#include "model/rows_with_mlp.h"
#include "model/unembed.h"
#include "model/watched_attention.h"

namespace llama2cpp {
namespace {

// A pass of T tokens through the layers. Each layer adds what its two halves make of the residual stream:
// x += attention(norm(x)), x += mlp(norm(x)). What else a model may do is guarded, by its plan and config.
struct Pass {
  const Model& model;
  std::span<const SequenceInput> sequences;
  Activations& a;
  const Hooks& hooks;
  bool to_go_back = false;  // what a layer's last product gives is left out where the way back does not read it

  const Config& c = model.config();
  const Weights& w = model.weights();
  Backend& be = model.backend();
  PassRows rows{sequences};
  WatchedAttention attend{be, hooks};
  Norms norms{c, be, a, hooks};
  Products multiply{model, sequences};

  void run(FunctionRef<void()> poll) {
    turn_by_position();
    hooks.start_at_layer ? enter() : embed();
    const std::int64_t end = hooks.stop_at_layer.value_or(c.n_layers);
    for (std::int64_t i = hooks.start_at_layer.value_or(0); i < end; ++i) {
      if (rows.tokens.size() > 1) poll();
      layer(i);
    }
    if (!hooks.stop_at_layer && !rows.wanted.empty()) logits();
    be.sync();
  }

  void run_layer(std::int64_t i) {
    turn_by_position();
    layer(i);
    be.sync();
  }

 private:
  // By how much the tokens' positions turn queries and keys.
  void turn_by_position() {
    for (std::size_t s = 0; s < rows.spans.size(); ++s) {
      const AttentionSpan& span = rows.spans[s];
      const RopeAngles& rope = model.rope(sequences[s].kv->context());
      for (std::int64_t t = 0; t < span.count; ++t) {
        const std::int64_t row = span.row + t;
        rope.at(span.position + t, a.cos.row(row), a.sin.row(row));
        if (c.local_rope_theta > 0)
          model.local_rope().at(span.position + t, a.local_cos.row(row), a.local_sin.row(row));
      }
    }
    std::fill_n(a.ones.row(0), a.ones.rows(), 1.0F);
  }

  // x = the tokens' rows of the table
  void embed() {
    be.embed(w.tok_embeddings, rows.tokens, a.x);  // [T] -> [T, dim]
    scale(a.x, c.embedding_multiplier);
    see(Point::embed, 0, a.x);
  }

  // x = the residual streams that are given
  void enter() {
    for (std::size_t s = 0; s < rows.spans.size(); ++s) {
      std::copy_n(sequences[s].residual, rows.spans[s].count * c.dim, a.x.row(rows.spans[s].row));
    }
  }

  void layer(std::int64_t i) {
    const LayerWeights& l = w.layers[static_cast<std::size_t>(i)];
    const LayerPlan& plan = model.plan(i);
    see(Point::resid_pre, i, a.x);
    Input x = before(plan, {l.attention_norm, l.attention_norm_b}, kLn1, i);
    attention(x, l, plan, i);
    if (!plan.parallel) {
      be.add(a.x, a.attn_out, a.x);
      see(Point::resid_mid, i, a.x);
      x = before(plan, {l.ffn_norm, l.ffn_norm_b}, kLn2, i);
    }
    if (to_go_back && c.n_experts == 0 && !plan.norm_after) return hidden(x, l, i);
    mlp(x, l, plan, i);
    if (plan.parallel) be.add(a.x, a.attn_out, a.x);
    be.add(a.x, a.mlp_out, a.x);
    see(Point::resid_post, i, a.x);
  }

  // attn_out = wo . (softmax(q . k / sqrt(head_dim)) . v)
  void attention(const Input& x, const LayerWeights& l, const LayerPlan& plan, std::int64_t i) {
    // [T, dim] -> [T, heads * head_dim]
    multiply(x, {{Part::wq, l.wq, l.bq, a.q}, {Part::wk, l.wk, l.bk, a.k}, {Part::wv, l.wv, l.bv, a.v}}, i);
    see(Point::q, i, a.q);
    see(Point::k, i, a.k);
    see(Point::v, i, a.v);
    if (plan.qk_norm_before_rope) norms.of_heads(l, i, rows.hook_spans);
    if (plan.rope) turn(a.q, plan);
    if (plan.rope) turn(a.k, plan);
    see(Point::rot_q, i, a.q);
    see(Point::rot_k, i, a.k);
    if (plan.qk_norm_after_rope) norms.of_heads(l, i, rows.hook_spans);

    set_layer(l, plan, i);
    be.store_kv(a.k, a.v, rows.spans);                 // into [kv_heads, context, head_dim]
    attend(i, a.q, rows.spans, rows.hook_spans, a.z);  // -> [T, n_heads * head_dim]
    see(Point::z, i, a.z);
    multiply({a.z}, {{Part::wo, l.wo, kNone, a.attn_out}}, i);  // -> [T, dim]
    if (hooks.active(Point::result, i)) show_head_results(c, be, l, a, i, rows.hook_spans, hooks);
    add_bias(a.attn_out, l.bo);
    if (plan.norm_after) norms.in_place(a.attn_out, {l.attention_post_norm}, kLn1Post, i, rows.hook_spans);
    scale(a.attn_out, c.residual_multiplier);
    see(Point::attn_out, i, a.attn_out);
  }

  // mlp_out = mlp(x), but of sequences for which hooks replace it: those have zeros, unless others are on both sides.
  void mlp(const Input& x, const LayerWeights& l, const LayerPlan& plan, std::int64_t i) {
    const Range some = rows_with_mlp(hooks, rows, i);
    if (some.end - some.begin == a.x.rows()) {
      compute_mlp(x, l, plan, i);
    } else {
      if (some.begin < some.end) {
        Activations part = a.of_rows(some);
        Pass{model, sequences_of(sequences, rows, some), part, hooks}.compute_mlp(of_rows(x, some), l, plan, i);
      }
      be.sync();
      zero_outside(a.mlp_out, some);
    }
    see(Point::mlp_out, i, a.mlp_out);
  }

  // Of the one MLP, or of the experts that the router chooses.
  void compute_mlp(const Input& x, const LayerWeights& l, const LayerPlan& plan, std::int64_t i) {
    if (c.n_experts > 0) {
      run_experts(c, be, l, x.x, x.norm, a, i, rows.hook_spans, hooks);  // -> mlp_out [T, dim]
    } else {
      dense(x, l, i);
    }
    if (plan.norm_after) norms.in_place(a.mlp_out, {l.ffn_post_norm}, kLn2Post, i, rows.hook_spans);
    scale(a.mlp_out, c.residual_multiplier);
  }

  // mlp_out = w2 . (silu(w1 . x) * (w3 . x)), or without a gate w2 . activation(w3 . x)
  void dense(const Input& x, const LayerWeights& l, std::int64_t i) {
    hidden(x, l, i);
    multiply({a.gate}, {{Part::w2, l.w2, l.b2, a.mlp_out}}, i);  // -> [T, dim]
  }

  // What w2 multiplies.
  void hidden(const Input& x, const LayerWeights& l, std::int64_t i) {
    if (c.gated) {
      multiply(x, {{Part::w1, l.w1, l.b1, a.gate}, {Part::w3, l.w3, l.b3, a.up}}, i);  // -> [T, hidden_dim] twice
      see(Point::mlp_pre, i, a.gate);
      see(Point::mlp_pre_linear, i, a.up);
      be.gated(c.activation, a.gate, a.up, a.gate);  // [T, hidden_dim]
    } else {
      multiply(x, {{Part::w3, l.w3, l.b3, a.gate}}, i);
      see(Point::mlp_pre, i, a.gate);
      be.activate(c.activation, a.gate, a.gate);
    }
    see(Point::mlp_post, i, a.gate);
  }

  // logits = output . norm(x), of the rows that want them
  void logits() {
    be.take_rows(a.x, rows.wanted, a.last);  // [T, dim] -> [R, dim]
    const Input x = norms.of(a.last, {w.norm, w.norm_b}, kLnFinal, c.n_layers - 1, rows.wanted_spans);
    if (hooks.no_logits) return;
    const Weight* const output[] = {&w.output};
    be.matmul(output, x.x, {&a.logits, 1}, x.norm);  // -> [R, vocab_size]
    finish_logits(c, be, a.logits);
  }

  // What a half of a layer reads: the residual stream, or its norm.
  Input before(const LayerPlan& plan, NormWeights weights, NormPoints points, std::int64_t i) {
    return plan.norm_before ? norms.of(a.x, weights, points, i, rows.hook_spans) : Input{a.x};
  }

  // Turns queries or keys by their positions, in place.
  void turn(const Tensor& x, const LayerPlan& plan) {
    const bool local = plan.local_rope;
    be.rope(x, local ? a.local_cos : a.cos, local ? a.local_sin : a.sin, c.head_dim, plan.rope_style);
  }

  // x *= multiplier, in place
  void scale(const Tensor& x, float multiplier) {
    if (multiplier != 1.0F) be.scale(x, multiplier, x);
  }

  void add_bias(const Tensor& x, const Vector& bias) {
    if (bias) be.add_bias(x, bias.view);  // in place
  }

  // What of attention's spans is a layer's.
  void set_layer(const LayerWeights& l, const LayerPlan& plan, std::int64_t i) {
    for (std::size_t s = 0; s < rows.spans.size(); ++s) {
      AttentionSpan& span = rows.spans[s];
      span.keys = sequences[s].kv->keys(i);
      span.values = sequences[s].kv->values(i);
      span.window = plan.window;
      span.divisor = plan.score_divisor;
      span.score_cap = plan.score_cap;
      span.sinks = l.sinks.view;  // empty where the model has none
    }
  }

  void see(Point point, std::int64_t i, const Tensor& activation) { hooks.at(point, i, activation, rows.hook_spans); }
};

}  // namespace

void forward(const Model& model, std::span<const SequenceInput> sequences, Activations& a, const Hooks& hooks,
             FunctionRef<void()> poll) {
  Pass{model, sequences, a, hooks}.run(poll);
}

void forward_to_go_back(const Model& model, std::span<const SequenceInput> sequences, Activations& a,
                        const Hooks& hooks, std::int64_t layer) {
  Pass{model, sequences, a, hooks, true}.run_layer(layer);
}

}  // namespace llama2cpp
