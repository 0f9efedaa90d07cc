// Charsmap: SentencePiece's precompiled normaliser: a trie of strings, each with the text that takes its place.
//
// The bytes are: the length of the trie in bytes (4, little-endian); the trie; the texts, each ended by a NUL. The trie is
// a darts-clone double array: units of 4 bytes with a label, the place of the children relative to the unit's own, and a
// flag that a string ends here; then the first child is the place of its text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llama2cpp {

class Charsmap {
 public:
  Charsmap() = default;

  // Empty bytes: a map without strings. Throws FormatError for lengths that cannot be. What the trie itself says is
  // checked where it is followed: a place outside the array ends a search.
  explicit Charsmap(std::string_view bytes);

  struct Match {
    std::size_t length = 0;  // 0: no string of the map begins the text
    std::string_view text;   // in the map
  };
  Match longest(std::string_view text) const { return find(text, true); }
  Match shortest(std::string_view text) const { return find(text, false); }

  bool empty() const { return units_.empty(); }

  // A text in valid UTF-8 as `tokenizers` maps it: what a grapheme cluster of at most 5 bytes begins with stands for the
  // whole of it, and in others, as in those that begin with no string, each character is looked for by itself.
  std::string by_clusters(std::string_view text) const;

 private:
  Match find(std::string_view text, bool longest) const;

  std::vector<std::uint32_t> units_;
  std::string texts_;
};

}  // namespace llama2cpp
