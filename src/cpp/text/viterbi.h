// Viterbi: the cut of a text into pieces whose scores have the largest sum, as Unigram models have it.
#pragma once

#include <array>
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
  // Of a trie; the children of a node follow each other, by their bytes in ascending order.
  struct Node {
    std::int32_t piece = -1;  // which of scores_, -1: none ends here
    std::uint32_t child = 0;  // the first
    std::uint16_t children = 0;
    std::uint8_t byte = 0;
  };
  struct Scored {
    std::int32_t id;
    double score;
  };

  const Node* step(const Node& from, char byte) const;

  Settings settings_;
  std::vector<Node> nodes_;  // the first is the root
  std::vector<Scored> scores_;
  std::array<std::int32_t, 256> first_;  // the root's children by their bytes, -1: none
};

}  // namespace llama2cpp
