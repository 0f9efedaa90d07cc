// Pattern: a regular expression that is searched for in linear time, with the results of a search that backtracks: the
// leftmost match, and of several the one that the earlier alternative, or the more of a greedy repetition, gives.
//
// It is compiled once to a table: a state is the list of places in the pattern that the characters so far can lead to, the
// preferred one first, and a character's class leads from a state to the next. A lookahead for one character is settled by
// the next step, since a match is noted one character late.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "text/code_points.h"

namespace llama2cpp {

struct PatternTree;

class Pattern {
 public:
  // Throws FormatError for what is not implemented (see pattern_syntax.h), and for a pattern whose table is too large.
  explicit Pattern(std::string_view pattern);

  struct Match {
    std::size_t begin, end;  // bytes; they may be equal
  };

  // Bytes that may be looked at. A match may look further than it reaches, and so all matches of a text together may
  // take more than linear time.
  struct Budget {
    std::uint64_t left;
  };

  // The first match that begins at `from` or later. Throws std::invalid_argument when the budget is used up.
  std::optional<Match> find(std::string_view text, std::size_t from, Budget& budget) const;

  // Whether a match could begin somewhere in the text: false where no character of it begins one.
  bool may_match(std::string_view text) const {
    return first_begin(text, 0) < text.size() || table_[start_ + end_] != 0;
  }

  // The same by bytes: false for a byte that is in no character which begins a match. A text of such alone has none.
  bool may_begin_with(std::uint8_t byte) const;

 private:
  Pattern(std::string_view pattern, const PatternTree& tree);

  // Of the table: twice the row of the next state (0: there is none), and 1 if a match ends before the character.
  using Entry = std::uint32_t;

  struct Run {
    std::size_t end;      // of the match that begins where the run does; kNone: there is none
    std::size_t scanned;  // up to where it has looked
  };
  Run run(std::string_view text, std::size_t at) const;
  CodePoint symbol_at(std::string_view text, std::size_t at) const;       // `code` is the class
  CodePoint wide_symbol_at(std::string_view text, std::size_t at) const;  // the same where the byte is no ASCII

  // Where the first character is, from `at` on, that a match can begin with; the text's length if there is none.
  std::size_t first_begin(std::string_view text, std::size_t at) const {
    while (at < text.size() && passes_[static_cast<std::uint8_t>(text[at])]) ++at;
    return at == text.size() || static_cast<std::uint8_t>(text[at]) < 0x80 ? at : first_wide_begin(text, at);
  }
  std::size_t first_wide_begin(std::string_view text, std::size_t at) const;

  CodeClasses classes_;
  std::uint32_t end_;                              // the class of the end of the text
  std::vector<Entry> table_;                       // [state][class]
  std::uint32_t start_ = 0;                        // its row
  std::array<std::uint8_t, 256> class_of_byte_{};  // kWide for those that are no ASCII
  std::array<bool, 256> passes_{};                 // ASCII that no match begins with
};

}  // namespace llama2cpp
