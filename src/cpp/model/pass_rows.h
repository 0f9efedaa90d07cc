// The rows of a pass, as the ops and the hooks want to see them: which token, sequence and position each is, and which
// rows' logits are wanted.
#pragma once

#include <span>
#include <vector>

#include "model/forward.h"

namespace llama2cpp {

struct PassRows {
  std::vector<std::int32_t> tokens;    // [T]
  std::vector<AttentionSpan> spans;    // one for each sequence; keys, values and what a layer's plan says are to be set
  std::vector<HookSpan> hook_spans;    // the same, for hooks
  std::vector<std::int64_t> wanted;    // [R] rows whose logits are wanted
  std::vector<HookSpan> wanted_spans;  // the same by sequence, as rows of those R

  explicit PassRows(std::span<const SequenceInput> sequences);
};

}  // namespace llama2cpp
