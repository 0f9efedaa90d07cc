// What is shown is what the next stage goes on from, so an edit counts.
#include "model/watched_attention.h"

namespace llama2cpp {

void WatchedAttention::operator()(std::int64_t layer, const Tensor& q, std::span<AttentionSpan> spans,
                                  std::span<const HookSpan> hook_spans, const Tensor& z) {
  using Stage = AttentionStage;
  const bool see_scores = hooks_.active(Point::attn_scores, layer);
  if (!see_scores && !hooks_.active(Point::pattern, layer)) return backend_.attention(q, spans, z);

  const std::int64_t heads = q.columns() / spans[0].keys.columns();
  if (see_scores) make(scores_, spans, heads, &AttentionSpan::scores);
  make(pattern_, spans, heads, &AttentionSpan::pattern);
  if (see_scores) {
    backend_.attention(q, spans, z, Stage::scores, Stage::scores);
    show(Point::attn_scores, layer, spans, &AttentionSpan::scores, hook_spans);
  }
  backend_.attention(q, spans, z, see_scores ? Stage::pattern : Stage::scores, Stage::pattern);
  show(Point::pattern, layer, spans, &AttentionSpan::pattern, hook_spans);
  backend_.attention(q, spans, z, Stage::values, Stage::values);
  for (AttentionSpan& span : spans) span.scores = span.pattern = {};
}

// [heads, T, position + T] for each sequence.
void WatchedAttention::make(Buffer& memory, std::span<AttentionSpan> spans, std::int64_t heads,
                            Tensor AttentionSpan::*tensor) const {
  const auto floats = [&](const AttentionSpan& span) { return heads * span.count * (span.position + span.count); };
  std::int64_t total = 0;
  for (const AttentionSpan& span : spans) total += floats(span);
  if (!memory) memory = backend_.alloc(static_cast<std::size_t>(total) * sizeof(float));
  auto* next = reinterpret_cast<float*>(memory.data());
  for (AttentionSpan& span : spans) {
    span.*tensor = Tensor(next, {heads, span.count, span.position + span.count});
    next += floats(span);
  }
}

void WatchedAttention::show(Point point, std::int64_t layer, std::span<AttentionSpan> spans,
                            Tensor AttentionSpan::*tensor, std::span<const HookSpan> hook_spans) const {
  if (hooks_.show_together(point, layer)) {
    Tensor all = spans[0].*tensor;
    all.shape[0] *= static_cast<std::int64_t>(spans.size());
    return hooks_.at(point, layer, all, hook_spans);
  }
  for (std::size_t s = 0; s < spans.size(); ++s) hooks_.at(point, layer, spans[s].*tensor, hook_spans.subspan(s, 1));
}

}  // namespace llama2cpp
