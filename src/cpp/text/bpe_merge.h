// The merge loop that all tokenizers share: again and again, the best-scoring pair of neighbours that may be joined
// becomes one symbol; among equal scores the leftmost. A heap and a linked list make it n log n.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <string_view>
#include <vector>

#include "text/piece_table.h"

namespace llama2cpp {

// A run of bytes of the text being encoded. Neighbours lie next to each other in the text.
struct Symbol {
  std::uint32_t begin = 0;
  std::uint32_t length = 0;
  std::int32_t id = -1;  // the piece it is, -1: none
  std::int32_t prev = -1;
  std::int32_t next = -1;  // -1: the last
  bool frozen = false;     // never merged
  bool merged = false;     // gone: it is part of a symbol to its left

  std::string_view in(std::string_view text) const { return text.substr(begin, length); }
  std::string_view with(const Symbol& right, std::string_view text) const {
    return text.substr(begin, length + right.length);
  }
};

// No text may be longer: symbols keep 32-bit places in it.
inline constexpr std::size_t kLongestText = 0x7FFFFFFF;

inline void append_symbol(std::vector<Symbol>& symbols, Symbol symbol) {
  const auto index = static_cast<std::int32_t>(symbols.size());
  symbol.prev = index - 1;
  if (index > 0) symbols.back().next = index;
  symbols.push_back(symbol);
}

// What two neighbours become.
struct Joined {
  double score = 0.0;
  std::int32_t id = -1;  // -1: they may not be joined
};

// Merges until nothing can be merged. The result is the list that starts at symbols[0] and goes on by `next`.
// join(left, right) -> Joined; `table` has every piece that it makes.
// Where no piece reaches across two neighbours, the two sides do not know of each other: the left one is finished
// before the right one is looked at, and so the heap is mostly as small as a word.
template <class Join>
void merge_symbols(std::string_view text, std::vector<Symbol>& symbols, const PieceTable& table, Join join) {
  struct Candidate {
    double score;
    std::int32_t left;
    std::int32_t right;
    std::uint32_t length;  // of both, when it was found: tells whether either has changed since
    std::int32_t id;

    bool operator<(const Candidate& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };
  std::priority_queue<Candidate> candidates;
  const auto at = [&](std::int32_t index) -> Symbol& { return symbols[static_cast<std::size_t>(index)]; };

  const auto consider = [&](std::int32_t left, std::int32_t right) {
    if (left < 0 || right < 0) return;
    const Symbol& a = at(left);
    const Symbol& b = at(right);
    if (a.frozen || b.frozen) return;
    const Joined joined = join(a, b);
    if (joined.id >= 0) candidates.push({joined.score, left, right, a.length + b.length, joined.id});
  };

  const auto merge_candidates = [&] {
    while (!candidates.empty()) {
      const Candidate best = candidates.top();
      candidates.pop();
      Symbol& left = at(best.left);
      Symbol& right = at(best.right);
      if (left.merged || right.merged || left.length + right.length != best.length) continue;

      left.length = best.length;
      left.id = best.id;
      left.next = right.next;
      right.merged = true;
      if (left.next >= 0) at(left.next).prev = best.left;
      consider(left.prev, best.left);
      consider(best.left, left.next);
    }
  };

  // A symbol without bytes (a piece whose name is empty) is no border.
  const auto apart = [&](const Symbol& a, const Symbol& b) {
    return a.length > 0 && b.length > 0 && !table.has_pair(text[b.begin - 1], text[b.begin]);
  };

  const auto count = static_cast<std::int32_t>(symbols.size());
  for (std::int32_t i = 1; i < count; ++i) {
    if (apart(at(i - 1), at(i))) {
      merge_candidates();
    } else {
      consider(i - 1, i);
    }
  }
  merge_candidates();
}

}  // namespace llama2cpp
