// What a Llama computes, from token ids to logits. The only place that knows the architecture.
#include "model/forward.h"

#include <algorithm>
#include <vector>

#include "model/head_results.h"

namespace llama2cpp {
namespace {

// A pass's rows as the ops and the hooks want to see them.
struct Rows {
  std::vector<std::int32_t> tokens;  // [T]
  std::vector<AttentionSpan> spans;  // one for each sequence
  std::vector<HookSpan> hook_spans;  // the same, for hooks
  std::vector<std::int64_t> wanted;  // [R] rows whose logits are wanted

  Rows(std::span<const SequenceInput> sequences, std::int64_t window) {
    for (const SequenceInput& s : sequences) {
      const auto first = static_cast<std::int64_t>(tokens.size());
      const auto count = static_cast<std::int64_t>(s.tokens.size());
      tokens.insert(tokens.end(), s.tokens.begin(), s.tokens.end());
      hook_spans.push_back({first, count, s.position, s.sequence});
      spans.push_back({.row = first,
                       .count = count,
                       .position = s.position,
                       .window = window,
                       .keys = {},
                       .values = {},
                       .scores = {},
                       .pattern = {}});
      if (s.logits == SequenceInput::Logits::all) {
        for (std::int64_t t = 0; t < count; ++t) wanted.push_back(first + t);
      } else if (s.logits == SequenceInput::Logits::last) {
        wanted.push_back(first + count - 1);
      }
    }
  }
};

}  // namespace

void forward(const Model& model, std::span<const SequenceInput> sequences, Activations& a, const Hooks& hooks,
             FunctionRef<void()> poll) {
  const Config& c = model.config();
  const Weights& w = model.weights();
  Backend& be = model.backend();
  Rows rows(sequences, c.sliding_window);
  const std::span<const HookSpan> spans = rows.hook_spans;

  // RMSNorm, in two halves: the divisor, and the product with it, which matmul does on the way in unless someone looks.
  const auto norm = [&](const Tensor& x, const std::vector<float>& gain, Point scale, Point normalized,
                        std::int64_t layer, std::span<const HookSpan> seen) -> std::pair<Tensor, Norm> {
    const Tensor divisor(a.scale.row(0), {x.rows(), 1});
    be.rms_scale(x, c.norm_eps, divisor);  // [T, dim] -> [T, 1]
    hooks.at(scale, layer, divisor, seen);
    if (!hooks.active(normalized, layer)) return {x, {divisor, gain.data()}};
    const Tensor out(a.normalized.row(0), {x.rows(), c.dim});
    be.normalize(x, divisor, out);  // [T, dim]
    hooks.at(normalized, layer, out, seen);
    return {out, {{}, gain.data()}};
  };

  const auto add_bias = [&](const Tensor& x, const std::vector<float>& bias) {
    if (!bias.empty()) be.add_bias(x, bias);  // in place
  };

  for (const HookSpan& span : spans) {
    for (std::int64_t t = 0; t < span.count; ++t) {
      model.rope().at(span.position + t, a.cos.row(span.row + t), a.sin.row(span.row + t));
    }
  }

  // Scores and patterns for those who look at them; all layers use the same memory.
  std::vector<Buffer> scores_memory(hooks.any() ? rows.spans.size() : 0);
  std::vector<Buffer> pattern_memory(scores_memory.size());
  const auto place_for = [&](std::vector<Buffer>& memory, std::size_t s) {  // [n_heads, T, position + T] of a sequence
    const AttentionSpan& span = rows.spans[s];
    const std::int64_t keys = span.position + span.count;
    const auto bytes = static_cast<std::size_t>(c.n_heads * span.count * keys) * sizeof(float);
    if (!memory[s]) memory[s] = be.alloc(bytes);
    return Tensor(reinterpret_cast<float*>(memory[s].data()), {c.n_heads, span.count, keys});
  };

  be.embed(w.tok_embeddings, rows.tokens, a.x);  // [T] -> [T, dim]
  hooks.at(Point::embed, 0, a.x, spans);

  const std::int64_t end = hooks.stop_at_layer.value_or(c.n_layers);
  for (std::int64_t i = 0; i < end; ++i) {
    const LayerWeights& l = w.layers[static_cast<std::size_t>(i)];
    if (rows.tokens.size() > 1) poll();

    // Attention: x += wo . (softmax(q . k / sqrt(head_dim)) . v)
    hooks.at(Point::resid_pre, i, a.x, spans);
    const auto [x1, norm1] = norm(a.x, l.attention_norm, Point::ln1_scale, Point::ln1_normalized, i, spans);
    const Weight* const qkv[] = {&l.wq, &l.wk, &l.wv};
    const Tensor qkv_out[] = {a.q, a.k, a.v};
    be.matmul(qkv, x1, qkv_out, norm1);  // [T, dim] -> [T, heads * head_dim]
    add_bias(a.q, l.bq);
    add_bias(a.k, l.bk);
    add_bias(a.v, l.bv);
    hooks.at(Point::q, i, a.q, spans);
    hooks.at(Point::k, i, a.k, spans);
    hooks.at(Point::v, i, a.v, spans);
    be.rope(a.q, a.cos, a.sin, c.head_dim, c.rope_style);  // in place
    be.rope(a.k, a.cos, a.sin, c.head_dim, c.rope_style);
    hooks.at(Point::rot_q, i, a.q, spans);
    hooks.at(Point::rot_k, i, a.k, spans);

    for (std::size_t s = 0; s < rows.spans.size(); ++s) {
      rows.spans[s].keys = sequences[s].kv->keys(i);
      rows.spans[s].values = sequences[s].kv->values(i);
    }
    be.store_kv(a.k, a.v, rows.spans);  // into [kv_heads, context, head_dim]
    const bool see_scores = hooks.active(Point::attn_scores, i);
    if (see_scores || hooks.active(Point::pattern, i)) {  // stop where someone looks
      const auto show = [&](Point point, Tensor AttentionSpan::*tensor) {
        for (std::size_t s = 0; s < rows.spans.size(); ++s) hooks.at(point, i, rows.spans[s].*tensor, {&spans[s], 1});
      };
      for (std::size_t s = 0; s < rows.spans.size(); ++s) {
        if (see_scores) rows.spans[s].scores = place_for(scores_memory, s);
        rows.spans[s].pattern = place_for(pattern_memory, s);
      }
      AttentionStage first = AttentionStage::scores;
      if (see_scores) {
        be.attention(a.q, rows.spans, a.z, first, AttentionStage::scores);
        show(Point::attn_scores, &AttentionSpan::scores);
        first = AttentionStage::pattern;
      }
      be.attention(a.q, rows.spans, a.z, first, AttentionStage::pattern);
      show(Point::pattern, &AttentionSpan::pattern);
      be.attention(a.q, rows.spans, a.z, AttentionStage::values, AttentionStage::values);
      for (AttentionSpan& span : rows.spans) span.scores = span.pattern = {};
    } else {
      be.attention(a.q, rows.spans, a.z);  // -> [T, n_heads * head_dim]
    }
    hooks.at(Point::z, i, a.z, spans);
    const Weight* const wo[] = {&l.wo};
    be.matmul(wo, a.z, {&a.attn_out, 1});  // -> [T, dim]
    if (hooks.active(Point::result, i)) show_head_results(c, be, l, a, i, spans, hooks);
    add_bias(a.attn_out, l.bo);
    hooks.at(Point::attn_out, i, a.attn_out, spans);
    be.add(a.x, a.attn_out, a.x);

    // Gated MLP: x += w2 . (silu(w1 . x) * (w3 . x))
    hooks.at(Point::resid_mid, i, a.x, spans);
    const auto [x2, norm2] = norm(a.x, l.ffn_norm, Point::ln2_scale, Point::ln2_normalized, i, spans);
    const Weight* const gate_up[] = {&l.w1, &l.w3};
    const Tensor gate_up_out[] = {a.gate, a.up};
    be.matmul(gate_up, x2, gate_up_out, norm2);  // [T, dim] -> [T, hidden_dim] twice
    add_bias(a.gate, l.b1);
    add_bias(a.up, l.b3);
    hooks.at(Point::mlp_pre, i, a.gate, spans);
    hooks.at(Point::mlp_pre_linear, i, a.up, spans);
    be.swiglu(a.gate, a.up, a.gate);  // [T, hidden_dim]
    hooks.at(Point::mlp_post, i, a.gate, spans);
    const Weight* const w2[] = {&l.w2};
    be.matmul(w2, a.gate, {&a.mlp_out, 1});  // -> [T, dim]
    add_bias(a.mlp_out, l.b2);
    hooks.at(Point::mlp_out, i, a.mlp_out, spans);
    be.add(a.x, a.mlp_out, a.x);
    hooks.at(Point::resid_post, i, a.x, spans);
  }

  be.sync();
  if (rows.wanted.empty() || hooks.stop_at_layer) return;
  for (std::size_t r = 0; r < rows.wanted.size(); ++r) {
    std::copy_n(a.x.row(rows.wanted[r]), c.dim, a.last.row(static_cast<std::int64_t>(r)));
  }
  std::vector<HookSpan> last_spans;  // the rows of each sequence that are left
  std::int64_t row = 0;
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const HookSpan& span = spans[s];
    const std::int64_t count = sequences[s].logits == SequenceInput::Logits::all    ? span.count
                               : sequences[s].logits == SequenceInput::Logits::last ? 1
                                                                                    : 0;
    if (count > 0) last_spans.push_back({row, count, span.position + span.count - count, span.sequence});
    row += count;
  }
  const auto [x3, norm3] =
      norm(a.last, w.norm, Point::ln_final_scale, Point::ln_final_normalized, c.n_layers - 1, last_spans);
  const Weight* const output[] = {&w.output};
  be.matmul(output, x3, {&a.logits, 1}, norm3);  // [R, dim] -> [R, vocab_size]
  be.sync();
}

}  // namespace llama2cpp
