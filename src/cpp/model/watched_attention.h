// Attention that stops at its two stages where hooks look at them.
#pragma once

#include <span>

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
  void make(Buffer& memory, std::span<AttentionSpan> spans, std::int64_t heads, Tensor AttentionSpan::*tensor) const;
  void show(Point point, std::int64_t layer, std::span<AttentionSpan> spans, Tensor AttentionSpan::*tensor,
            std::span<const HookSpan> hook_spans) const;

  Backend& backend_;
  const Hooks& hooks_;
  Buffer scores_, pattern_;  // of all sequences, one after the other; all layers use the same memory
};

}  // namespace llama2cpp
