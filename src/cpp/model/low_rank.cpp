#include "model/low_rank.h"

#include <algorithm>

#include "model/forward.h"
#include "model/views.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kMostTogether = 3;  // queries, keys and values read the same

}  // namespace

LowRankProducts::LowRankProducts(const Model& model, std::span<const SequenceInput> sequences) : be_(model.backend()) {
  std::int64_t row = 0;
  std::int64_t rank = 0;
  for (const SequenceInput& sequence : sequences) {
    const auto count = static_cast<std::int64_t>(sequence.tokens.size());
    if (sequence.adapter != nullptr) {
      rank = std::max(rank, sequence.adapter->largest_rank());
      if (!rows_.empty() && rows_.back().adapter == sequence.adapter &&
          rows_.back().first + rows_.back().count == row) {
        rows_.back().count += count;
      } else {
        rows_.push_back({sequence.adapter, row, count});
      }
    }
    row += count;
  }
  if (rows_.empty()) return;
  const Config& c = model.config();
  const std::int64_t widest = std::max({c.dim, c.q_dim(), c.kv_dim(), c.hidden_dim});
  const std::int64_t width = static_cast<std::int64_t>(kMostTogether) * rank;
  memory_ = model.borrow_memory(static_cast<std::size_t>(row * (width + widest) + 2 * Views::kLine) * sizeof(float));
  Views view(memory_);
  low_ = view(row, width).row(0);
  change_ = view(row, widest).row(0);
}

void LowRankProducts::add(const Input& input, std::span<const AdaptedOutput> outputs, std::int64_t layer) {
  for (const Rows& rows : rows_) {
    const Weight* down[kMostTogether];
    Tensor low[kMostTogether];
    const LowRank* factors[kMostTogether];
    Tensor out[kMostTogether];
    std::size_t count = 0;
    float* next = low_;
    for (const AdaptedOutput& output : outputs) {
      const LowRank* const found = rows.adapter->find(output.part, layer);
      if (found == nullptr) continue;
      factors[count] = found;
      down[count] = &found->a;
      low[count] = Tensor(next, {rows.count, found->rank()});
      out[count] = output.out.slice(rows.first, rows.count);
      next += rows.count * found->rank();
      ++count;
    }
    if (count == 0) continue;
    const Norm norm{input.norm.scale ? input.norm.scale.slice(rows.first, rows.count) : Tensor{}, input.norm.gain};
    be_.matmul({down, count}, input.x.slice(rows.first, rows.count), {low, count}, norm);  // -> [rows, rank]
    for (std::size_t i = 0; i < count; ++i) {
      const Weight* const up[] = {&factors[i]->b};
      const Tensor change(change_, {rows.count, out[i].columns()});
      if (factors[i]->scale != 1.0F) be_.scale(low[i], factors[i]->scale, low[i]);
      be_.matmul(up, low[i], {&change, 1});  // -> [rows, columns]
      be_.add(out[i], change, out[i]);
    }
  }
}

}  // namespace llama2cpp
