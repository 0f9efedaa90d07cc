// What is shown is what the next stage goes on from, so an edit counts.
#include "model/watched_attention.h"

namespace llama2cpp {

void WatchedAttention::operator()(std::int64_t layer, const Tensor& q, std::span<AttentionSpan> spans,
                                  std::span<const HookSpan> hook_spans, const Tensor& z) {
  using Stage = AttentionStage;
  const bool see_scores = hooks_.active(Point::attn_scores, layer);
  if (!see_scores && !hooks_.active(Point::pattern, layer)) return backend_.attention(q, spans, z);

  for (std::size_t s = 0; s < spans.size(); ++s) {
    const std::int64_t heads = q.columns() / spans[s].keys.columns();
    if (see_scores) spans[s].scores = place(scores_, s, heads, spans[s]);
    spans[s].pattern = place(pattern_, s, heads, spans[s]);
  }
  if (see_scores) {
    backend_.attention(q, spans, z, Stage::scores, Stage::scores);
    show(Point::attn_scores, layer, spans, &AttentionSpan::scores, hook_spans);
  }
  backend_.attention(q, spans, z, see_scores ? Stage::pattern : Stage::scores, Stage::pattern);
  show(Point::pattern, layer, spans, &AttentionSpan::pattern, hook_spans);
  backend_.attention(q, spans, z, Stage::values, Stage::values);
  for (AttentionSpan& span : spans) span.scores = span.pattern = {};
}

void WatchedAttention::show(Point point, std::int64_t layer, std::span<AttentionSpan> spans,
                            Tensor AttentionSpan::*tensor, std::span<const HookSpan> hook_spans) const {
  for (std::size_t s = 0; s < spans.size(); ++s) hooks_.at(point, layer, spans[s].*tensor, hook_spans.subspan(s, 1));
}

// [heads, T, position + T] of a sequence.
Tensor WatchedAttention::place(std::vector<Buffer>& memory, std::size_t sequence, std::int64_t heads,
                               const AttentionSpan& span) {
  if (memory.size() <= sequence) memory.resize(sequence + 1);
  const std::int64_t keys = span.position + span.count;
  const auto bytes = static_cast<std::size_t>(heads * span.count * keys) * sizeof(float);
  if (!memory[sequence]) memory[sequence] = backend_.alloc(bytes);
  return {reinterpret_cast<float*>(memory[sequence].data()), {heads, span.count, keys}};
}

}  // namespace llama2cpp
