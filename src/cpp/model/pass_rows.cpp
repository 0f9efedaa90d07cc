// Rows follow each other in the order of the sequences.
#include "model/pass_rows.h"

namespace llama2cpp {
namespace {

// How many of a sequence's rows, the last ones, have logits.
std::int64_t wanted_of(const SequenceInput& sequence) {
  switch (sequence.logits) {
    case SequenceInput::Logits::all:
      return static_cast<std::int64_t>(sequence.tokens.size());
    case SequenceInput::Logits::last:
      return 1;
    default:
      return 0;
  }
}

}  // namespace

PassRows::PassRows(std::span<const SequenceInput> sequences) {
  for (const SequenceInput& s : sequences) {
    const auto first = static_cast<std::int64_t>(tokens.size());
    const auto count = static_cast<std::int64_t>(s.tokens.size());
    tokens.insert(tokens.end(), s.tokens.begin(), s.tokens.end());
    hook_spans.push_back({first, count, s.position, s.sequence});
    AttentionSpan& span = spans.emplace_back();
    span.row = first;
    span.count = count;
    span.position = s.position;

    const std::int64_t last = wanted_of(s);
    if (last == 0) continue;
    wanted_spans.push_back({static_cast<std::int64_t>(wanted.size()), last, s.position + count - last, s.sequence});
    for (std::int64_t row = first + count - last; row < first + count; ++row) wanted.push_back(row);
  }
}

}  // namespace llama2cpp
