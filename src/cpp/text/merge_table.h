// MergeTable: what two neighbouring pieces of byte-level BPE become, by their ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/vocabulary.h"

namespace llama2cpp {

class MergeTable {
 public:
  struct Entry {
    std::uint64_t key = 0;   // left id, right id
    std::uint32_t rank = 0;  // lower merges first
    std::int32_t id = -1;    // of both joined; -1: they do not merge
  };

  // The rank of a merge is its place in the list; of two with the same parts the later one counts, as in `tokenizers`.
  explicit MergeTable(std::span<const Merge> merges);

  Entry find(std::int32_t left, std::int32_t right) const {
    const std::uint64_t key = key_of(left, right);
    std::size_t at = slot_of(key);
    while (slots_[at].id >= 0 && slots_[at].key != key) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }

 private:
  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
  }
  std::size_t slot_of(std::uint64_t key) const {
    key = (key ^ (key >> 29)) * 0x9E3779B97F4A7C15u;
    return (key ^ (key >> 32)) & (slots_.size() - 1);
  }

  std::vector<Entry> slots_;  // [a power of two, at least half as many again as there are merges]
};

}  // namespace llama2cpp
