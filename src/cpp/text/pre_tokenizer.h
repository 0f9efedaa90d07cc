// The pre-tokenizer of byte-level BPE: it cuts a text into words, each of which is encoded by itself.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/function_ref.h"
#include "core/vocabulary.h"
#include "text/pattern.h"

namespace llama2cpp {

class WordCutter {
 public:
  // Throws FormatError for a pattern that is not implemented.
  explicit WordCutter(const ByteBpeRules& rules);

  // Calls each(word) for the words in their order; they are parts of the text and never empty. A byte that belongs to no
  // character is a character of its own that is neither letter nor number nor space. Throws std::invalid_argument for a
  // text that a pattern would take far more than linear time for, which of those of PreTokenizer only jais2 does, for some
  // 60,000 spaces in a row.
  void cut(std::string_view text, FunctionRef<void(std::string_view)> each) const;

 private:
  struct Step {
    Pattern pattern;
    SplitBehavior behavior;
    bool invert;
    std::array<bool, 256> later;  // bytes of characters that may begin what a later step finds
  };

  void cut_from(std::size_t step, std::string_view text, FunctionRef<void(std::string_view)> each,
                Pattern::Budget& budget) const;

  std::vector<Step> steps_;
  bool keeps_all_ = true;  // no step removes anything
};

// Bytes of the white space that a text begins or ends with.
std::size_t spaces_at_start(std::string_view text);
std::size_t spaces_at_end(std::string_view text);

}  // namespace llama2cpp
