// Regular expressions as tokenizer.json files have them, read as Oniguruma reads them, into a tree.
//
// What there is: characters, escapes (\r \n \t \f \v \a \e \x61 \x{61} \u0061, and a backslash before punctuation), `.`,
// \s \S \d \D, \p{L} \P{L} \p{^L} with general categories, sets with ranges, negation, sets in sets and &&, groups (named
// ones excepted), (?i:...) for ASCII, alternatives, ? * + {n} {n,} {n,m} {,m}, lazy ones, possessive ones of one character,
// $, and lookahead for one character. Whatever else is refused by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "text/code_points.h"

namespace llama2cpp {

struct PatternNode {
  enum class Kind : std::uint8_t {
    set,       // a character of the set
    sequence,  // all children, one after the other; without any, nothing
    choice,    // one of the children, the earlier ones first
    repeat,    // the child, min to max times
    ahead,     // nothing, where the next character is of the set, or where the text ends and at_end says so
  };
  static constexpr std::uint32_t kNoMost = 0xFFFFFFFF;

  Kind kind = Kind::sequence;
  std::uint32_t set = 0;  // which of PatternTree::sets
  bool at_end = false;
  std::uint32_t min = 0, max = 0;  // kNoMost: without an end
  bool lazy = false;               // fewer times first
  std::vector<PatternNode> children;
};

struct PatternTree {
  PatternNode root;
  std::vector<CodeSet> sets;  // all different, no more than CodeClasses::kMostSets
};

// Throws FormatError, which says what is not understood, or not implemented, and at which byte.
PatternTree read_pattern(std::string_view pattern);

}  // namespace llama2cpp
