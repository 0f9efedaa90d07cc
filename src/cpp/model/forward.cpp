// What a Llama computes, from token ids to logits. The only place that knows the architecture.
#include "model/forward.h"

#include <algorithm>

#include "model/experts.h"
#include "model/head_results.h"
#include "model/pass_rows.h"
#include "model/watched_attention.h"

namespace llama2cpp {
namespace {

// x, and how matmul normalises it on the way in.
struct Input {
  Tensor x;
  Norm norm = {};
};

// out = weight . x + bias
struct Product {
  const Weight& weight;
  const Vector& bias;
  const Tensor& out;
};

const Vector kNoBias{};

// Where hooks see the two halves of a norm.
struct NormPoints {
  Point scale, normalized;
};
constexpr NormPoints kLn1{Point::ln1_scale, Point::ln1_normalized};
constexpr NormPoints kLn2{Point::ln2_scale, Point::ln2_normalized};
constexpr NormPoints kLnFinal{Point::ln_final_scale, Point::ln_final_normalized};

// A pass of T tokens through the layers. Each layer adds what its two halves make of the residual stream:
// x += attention(norm(x)), x += mlp(norm(x)).
struct Pass {
  const Model& model;
  std::span<const SequenceInput> sequences;
  Activations& a;
  const Hooks& hooks;

  const Config& c = model.config();
  const Weights& w = model.weights();
  Backend& be = model.backend();
  PassRows rows{sequences};
  WatchedAttention attend{be, hooks};

  void run(FunctionRef<void()> poll) {
    embed();
    const std::int64_t end = hooks.stop_at_layer.value_or(c.n_layers);
    for (std::int64_t i = 0; i < end; ++i) {
      if (rows.tokens.size() > 1) poll();
      attention(i);
      mlp(i);
    }
    if (!hooks.stop_at_layer && !rows.wanted.empty()) logits();
    be.sync();
  }

 private:
  // x = the tokens' rows of the table, and by how much their positions turn queries and keys.
  void embed() {
    for (std::size_t s = 0; s < rows.spans.size(); ++s) {
      const AttentionSpan& span = rows.spans[s];
      const RopeAngles& rope = model.rope(sequences[s].kv->context());
      for (std::int64_t t = 0; t < span.count; ++t) {
        rope.at(span.position + t, a.cos.row(span.row + t), a.sin.row(span.row + t));
      }
    }
    std::fill_n(a.ones.row(0), a.ones.rows(), 1.0F);
    be.embed(w.tok_embeddings, rows.tokens, a.x);  // [T] -> [T, dim]
    scale(a.x, w.embedding_multiplier);
    see(Point::embed, 0, a.x);
  }

  // x += wo . (softmax(q . k / sqrt(head_dim)) . v)
  void attention(std::int64_t i) {
    const LayerWeights& l = w.layers[static_cast<std::size_t>(i)];
    const LayerPlan& plan = model.plan(i);
    see(Point::resid_pre, i, a.x);
    const Input x = normed(a.x, l.attention_norm, kLn1, i, rows.hook_spans);
    multiply(x, {{l.wq, l.bq, a.q}, {l.wk, l.bk, a.k}, {l.wv, l.bv, a.v}});  // [T, dim] -> [T, heads * head_dim]
    see(Point::q, i, a.q);
    see(Point::k, i, a.k);
    see(Point::v, i, a.v);
    if (c.qk_norm != QkNorm::none) norm_heads(l, i);
    if (plan.rope) be.rope(a.q, a.cos, a.sin, c.head_dim, plan.rope_style);  // in place
    if (plan.rope) be.rope(a.k, a.cos, a.sin, c.head_dim, plan.rope_style);
    see(Point::rot_q, i, a.q);
    see(Point::rot_k, i, a.k);

    set_layer(i, plan);
    be.store_kv(a.k, a.v, rows.spans);                 // into [kv_heads, context, head_dim]
    attend(i, a.q, rows.spans, rows.hook_spans, a.z);  // -> [T, n_heads * head_dim]
    see(Point::z, i, a.z);
    multiply({a.z}, {{l.wo, kNoBias, a.attn_out}});  // -> [T, dim]
    if (hooks.active(Point::result, i)) show_head_results(c, be, l, a, i, rows.hook_spans, hooks);
    add_bias(a.attn_out, l.bo);
    scale(a.attn_out, w.residual_multiplier);
    see(Point::attn_out, i, a.attn_out);
    be.add(a.x, a.attn_out, a.x);
  }

  // x += mlp(x): of the one MLP, or of the experts that the router chooses
  void mlp(std::int64_t i) {
    const LayerWeights& l = w.layers[static_cast<std::size_t>(i)];
    see(Point::resid_mid, i, a.x);
    const Input x = normed(a.x, l.ffn_norm, kLn2, i, rows.hook_spans);
    if (c.n_experts > 0) {
      run_experts(c, be, l, x.x, x.norm, a, i, rows.hook_spans, hooks);  // -> mlp_out [T, dim]
    } else {
      dense(l, x, i);
    }
    scale(a.mlp_out, w.residual_multiplier);
    see(Point::mlp_out, i, a.mlp_out);
    be.add(a.x, a.mlp_out, a.x);
    see(Point::resid_post, i, a.x);
  }

  // mlp_out = w2 . (silu(w1 . x) * (w3 . x))
  void dense(const LayerWeights& l, const Input& x, std::int64_t i) {
    multiply(x, {{l.w1, l.b1, a.gate}, {l.w3, l.b3, a.up}});  // [T, dim] -> [T, hidden_dim] twice
    see(Point::mlp_pre, i, a.gate);
    see(Point::mlp_pre_linear, i, a.up);
    be.gated(Activation::silu, a.gate, a.up, a.gate);  // [T, hidden_dim]
    see(Point::mlp_post, i, a.gate);
    multiply({a.gate}, {{l.w2, l.b2, a.mlp_out}});  // -> [T, dim]
  }

  // logits = output . norm(x), of the rows that want them
  void logits() {
    be.take_rows(a.x, rows.wanted, a.last);  // [T, dim] -> [R, dim]
    const Input x = normed(a.last, w.norm, kLnFinal, c.n_layers - 1, rows.wanted_spans);
    multiply(x, {{w.output, kNoBias, a.logits}});  // -> [R, vocab_size]
    scale(a.logits, w.logits_multiplier);
  }

  // RMSNorm, in two halves: the divisor, and the product with it, which matmul does on the way in unless a hook looks.
  Input normed(const Tensor& x, const Vector& gain, NormPoints points, std::int64_t i,
               std::span<const HookSpan> spans) {
    const Tensor scale = a.scale.slice(0, x.rows());
    be.rms_scale(x, c.norm_eps, scale);  // [T, dim] -> [T, 1]
    hooks.at(points.scale, i, scale, spans);
    if (!hooks.active(points.normalized, i)) return {x, {scale, gain.view}};
    const Tensor normalized = a.normalized.slice(0, x.rows());
    be.normalize(x, {scale, {}}, normalized);  // [T, dim]
    hooks.at(points.normalized, i, normalized, spans);
    return {normalized, {{}, gain.view}};
  }

  // RMSNorm of queries and keys, in place: of each head, or of all heads of a token as one.
  void norm_heads(const LayerWeights& l, std::int64_t i) {
    norm_rows(a.q, l.q_norm);
    norm_rows(a.k, l.k_norm);
    see(Point::q_normed, i, a.q);
    see(Point::k_normed, i, a.k);
  }

  // x [T, groups * n], gain [n]
  void norm_rows(const Tensor& x, const Vector& gain) {
    const std::int64_t n = gain.view.columns();
    const std::int64_t groups = x.rows() * (x.columns() / n);
    const Tensor by_group(x.row(0), {groups, n});
    const Tensor scale = a.head_scale.slice(0, groups);
    be.rms_scale(by_group, c.norm_eps, scale);
    be.normalize(by_group, {scale, gain.view}, by_group);
  }

  // x *= multiplier, in place
  void scale(const Tensor& x, const Vector& multiplier) {
    if (multiplier) be.normalize(x, {a.ones.slice(0, x.rows()), multiplier.view}, x);
  }

  template <std::size_t kCount>
  void multiply(const Input& input, const Product (&products)[kCount]) {
    const Weight* weights[kCount];
    Tensor outs[kCount];
    for (std::size_t i = 0; i < kCount; ++i) {
      weights[i] = &products[i].weight;
      outs[i] = products[i].out;
    }
    be.matmul(weights, input.x, outs, input.norm);
    for (const Product& product : products) add_bias(product.out, product.bias);
  }

  void add_bias(const Tensor& x, const Vector& bias) {
    if (bias) be.add_bias(x, bias.view);  // in place
  }

  // What of attention's spans is a layer's.
  void set_layer(std::int64_t i, const LayerPlan& plan) {
    for (std::size_t s = 0; s < rows.spans.size(); ++s) {
      AttentionSpan& span = rows.spans[s];
      span.keys = sequences[s].kv->keys(i);
      span.values = sequences[s].kv->values(i);
      span.window = plan.window;
      span.divisor = plan.score_divisor;
    }
  }

  void see(Point point, std::int64_t i, const Tensor& activation) { hooks.at(point, i, activation, rows.hook_spans); }
};

}  // namespace

void forward(const Model& model, std::span<const SequenceInput> sequences, Activations& a, const Hooks& hooks,
             FunctionRef<void()> poll) {
  Pass{model, sequences, a, hooks}.run(poll);
}

}  // namespace llama2cpp
