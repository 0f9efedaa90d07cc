#include "text/merge_table.h"

#include <bit>

namespace llama2cpp {

MergeTable::MergeTable(std::span<const Merge> merges) : slots_(std::bit_ceil(merges.size() + merges.size() / 2 + 1)) {
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right, id] = merges[rank];
    const std::uint64_t key = key_of(left, right);
    std::size_t at = slot_of(key);
    while (slots_[at].id >= 0 && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = {key, static_cast<std::uint32_t>(rank), id};
  }
}

}  // namespace llama2cpp
