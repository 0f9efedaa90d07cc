// Attention that stops at its two stages where hooks look at them.
#pragma once

#include <span>
#include <vector>

#include "backend/backend.h"
#include "observe/hooks.h"

namespace llama2cpp {

class WatchedAttention {
 public:
  WatchedAttention(Backend& backend, const Hooks& hooks) : backend_(backend), hooks_(hooks) {}

  // Backend::attention, for a layer. Where a hook looks, each sequence's scores and pattern are made and shown.
  void operator()(std::int64_t layer, const Tensor& q, std::span<AttentionSpan> spans,
                  std::span<const HookSpan> hook_spans, const Tensor& z);

 private:
  void show(Point point, std::int64_t layer, std::span<AttentionSpan> spans, Tensor AttentionSpan::*tensor,
            std::span<const HookSpan> hook_spans) const;
  Tensor place(std::vector<Buffer>& memory, std::size_t sequence, std::int64_t heads, const AttentionSpan& span);

  Backend& backend_;
  const Hooks& hooks_;
  std::vector<Buffer> scores_, pattern_;  // of each sequence; all layers use the same memory
};

}  // namespace llama2cpp
