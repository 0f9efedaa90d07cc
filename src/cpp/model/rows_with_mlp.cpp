// One range of rows for a pass, so that its products are made once; a sequence between two others is computed in vain.
#include "model/rows_with_mlp.h"

#include <algorithm>

namespace llama2cpp {

Range rows_with_mlp(const Hooks& hooks, const PassRows& rows, std::int64_t layer) {
  const auto all = static_cast<std::int64_t>(rows.tokens.size());
  if (!hooks.active(Point::mlp_out, layer)) return {0, all};
  Range wanted{all, 0};
  for (const HookSpan& span : rows.hook_spans) {
    if (hooks.replaces_mlp(layer, span.sequence)) continue;
    wanted.begin = std::min(wanted.begin, span.row);
    wanted.end = span.row + span.count;
  }
  return wanted.begin < wanted.end ? wanted : Range{0, 0};
}

std::span<const SequenceInput> sequences_of(std::span<const SequenceInput> sequences, const PassRows& rows,
                                            Range some) {
  const auto starts_in = [&](const HookSpan& span) { return span.row >= some.begin && span.row < some.end; };
  const auto first = std::find_if(rows.hook_spans.begin(), rows.hook_spans.end(), starts_in);
  const auto count = std::count_if(first, rows.hook_spans.end(), starts_in);
  return sequences.subspan(static_cast<std::size_t>(first - rows.hook_spans.begin()), static_cast<std::size_t>(count));
}

Input of_rows(const Input& input, Range some) {
  const std::int64_t count = some.end - some.begin;
  Input part{input.x.slice(some.begin, count), input.norm};
  if (part.norm.scale) part.norm.scale = part.norm.scale.slice(some.begin, count);
  return part;
}

void zero_outside(const Tensor& x, Range some) {
  for (const Range zeros : {Range{0, some.begin}, Range{some.end, x.rows()}}) {
    for (std::int64_t t = zeros.begin; t < zeros.end; ++t) std::fill_n(x.row(t), x.columns(), 0.0F);
  }
}

}  // namespace llama2cpp
