// Viterbi: the cut of a text into pieces whose scores have the largest sum, as Unigram models have it.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/function_ref.h"

namespace llama2cpp {

class Viterbi {
 public:
  struct Piece {
    std::string_view text;  // not empty
    std::int32_t id = -1;
    double score = 0;
  };
  struct Settings {
    double unknown_score = 0;  // of a character that no piece is
    // Sums are of float, and counted from 0 again where they are beyond 100000, as in sentencepiece 0.2.3; else of double,
    // as in `tokenizers`.
    bool single = false;
  };

  // Of equal pieces the last counts. Their texts are not needed afterwards.
  Viterbi(std::vector<Piece> pieces, const Settings& settings);

  // Calls each(part, id) for the parts of a text in valid UTF-8, in their order; id -1: a character that is no piece. Of
  // equal sums the one whose last piece begins first counts, and so on from the end to the start.
  void cut(std::string_view text, FunctionRef<void(std::string_view, std::int32_t)> each) const;

  // The piece that is this text; -1: none.
  std::int32_t find(std::string_view text) const;

 private:
  // Of a trie. The child of a node by a byte lies at its base + the byte, where a node of that parent is: the nodes lie
  // in one array, among each other, so that a step is one look.
  struct Node {
    std::uint32_t parent = kNone;
    std::uint32_t base = 0;
    std::int32_t piece = -1;  // which of scores_, -1: none ends here
  };
  struct Scored {
    std::int32_t id;
    double score;
  };
  static constexpr std::uint32_t kNone = 0xffffffff;

  // A base at which none of the bytes meets a node that is there already.
  std::uint32_t room_for(std::span<const std::uint8_t> bytes, std::size_t& free);
  std::uint32_t step(std::uint32_t from, char byte) const {  // kNone: no child
    const std::uint32_t to = nodes_[from].base + static_cast<std::uint8_t>(byte);
    return nodes_[to].parent == from ? to : kNone;
  }

  Settings settings_;
  std::vector<Node> nodes_;  // the first is the root; 256 empty ones at the end, so that every step is inside
  std::vector<Scored> scores_;
};

}  // namespace llama2cpp
