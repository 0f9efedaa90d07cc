// Added tokens of byte-level BPE and BPE by rank: tokens that are found in a text before anything is merged. The rules are
// those of `tokenizers`.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/function_ref.h"
#include "core/vocabulary.h"
#include "text/prefix_matcher.h"

namespace llama2cpp {

class AddedTokens {
 public:
  // The tokens for which AddedToken::normalized is as given, each spelled as `spell` says. `added`: what is said of some.
  AddedTokens(const Vocabulary& vocabulary, std::span<const AddedToken> added, bool normalized,
              FunctionRef<std::string(const std::string&)> spell);

  bool empty() const { return matcher_.empty(); }

  // Calls each(part, id) for the tokens (id, no part) and for what lies between them (part, id -1; never empty), in their
  // order. The longest token at a place counts. Without `special` a control token stays text.
  void cut(std::string_view text, bool special, FunctionRef<void(std::string_view, std::int32_t)> each) const;

 private:
  struct Rules {
    bool control = false;
    bool lstrip = false;  // takes the white space before it, which is then nothing
    bool rstrip = false;
  };
  std::vector<Rules> rules_;  // [vocab_size]
  PrefixMatcher matcher_;
};

}  // namespace llama2cpp
