// SpecialPieces: control pieces are never made from plain text. Merges may make one all the same, on the way to a longer
// piece; one that remains is taken apart again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/function_ref.h"
#include "core/vocabulary.h"

namespace llama2cpp {

class SpecialPieces {
 public:
  SpecialPieces(const Vocabulary& vocabulary, std::span<const Merge> merges) : vocabulary_(vocabulary) {
    for (const Merge& merge : merges) {
      if (control(merge[2])) halves_.try_emplace(merge[2], merge[0], merge[1]);  // the first merge counts
    }
  }

  // Calls each(id, bytes) for the piece, if it is no control piece; else for what it was merged from, and for what cannot
  // be taken apart with the id -1. `text` is the piece's bytes. Ends, because halves are shorter.
  void take_apart(std::int32_t id, std::string_view text,
                  FunctionRef<void(std::int32_t, std::string_view)> each) const {
    if (id < 0 || !control(id)) return each(id, text);
    std::vector<std::pair<std::int32_t, std::string_view>> parts = {{id, text}};  // the next one last
    while (!parts.empty()) {
      const auto [part, bytes] = parts.back();
      parts.pop_back();
      const auto found = control(part) ? halves_.find(part) : halves_.end();
      if (found == halves_.end()) {
        each(control(part) ? -1 : part, bytes);
        continue;
      }
      const auto [left, right] = found->second;
      const std::size_t middle = vocabulary_.pieces[static_cast<std::size_t>(left)].size();
      parts.emplace_back(right, bytes.substr(middle));
      parts.emplace_back(left, bytes.substr(0, middle));
    }
  }

 private:
  // Not where a file calls what stands for a space special: text has spaces.
  bool control(std::int32_t id) const {
    const auto index = static_cast<std::size_t>(id);
    return vocabulary_.types[index] == PieceType::control && vocabulary_.pieces[index] != kEscapedSpace;
  }

  const Vocabulary& vocabulary_;
  std::unordered_map<std::int32_t, std::pair<std::int32_t, std::int32_t>> halves_;
};

}  // namespace llama2cpp
