// How a pre-tokenizer cuts a text into words: by patterns, one after the other, each of which cuts what the one before has
// left. The cuts that have a name are listed here, with their patterns.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/enum_names.h"
#include "core/fields.h"

namespace llama2cpp {

// What becomes of the matches of a pattern. isolated: they are words, and so is what lies between them. contiguous: the
// same, and matches that follow each other are one word.
enum class SplitBehavior : std::uint8_t { isolated, removed, merged_with_previous, merged_with_next, contiguous };
template <>
inline constexpr std::array<std::string_view, 5> kEnumNames<SplitBehavior> = {
    "isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"};

struct Split {
  std::string pattern;  // a regular expression, UTF-8; what it may hold: text/pattern_syntax.h
  SplitBehavior behavior = SplitBehavior::isolated;
  bool invert = false;  // what lies between the matches is taken for the matches

  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("pattern", &Split::pattern);
    visit("behavior", &Split::behavior);
    visit("invert", &Split::invert);
  }
  bool operator==(const Split& other) const { return same_fields(*this, other); }
};
static_assert(all_listed<Split>());

// The cuts of byte-level BPE that have a name, most of them that of a family of models. splits: none of these.
enum class PreTokenizer : std::uint8_t {
  gpt2,
  llama3,
  smollm,
  ggml_default,
  qwen2,
  seed_coder,
  tekken,
  deepseek_coder,
  deepseek_llm,
  deepseek_v3,
  qwen35,
  o200k,
  falcon,
  bloom,
  viking,
  chameleon,
  bailing,
  exaone_moe,
  jais2,
  youtu,
  laguna,
  minicpm5,
  ufakzeka,
  spark,
  splits,
};
template <>
inline constexpr std::array<std::string_view, 25> kEnumNames<PreTokenizer> = {
    "gpt2",           "llama3",       "smollm",      "ggml_default", "qwen2", "seed_coder", "tekken",
    "deepseek_coder", "deepseek_llm", "deepseek_v3", "qwen35",       "o200k", "falcon",     "bloom",
    "viking",         "chameleon",    "bailing",     "exaone_moe",   "jais2", "youtu",      "laguna",
    "minicpm5",       "ufakzeka",     "spark",       "splits"};

// The patterns of a cut, all isolated; none for PreTokenizer::splits.
std::span<const std::string_view> patterns_of(PreTokenizer cut);

// The cut that these are; PreTokenizer::splits if they are none of the others.
PreTokenizer cut_of(std::span<const Split> splits);

}  // namespace llama2cpp
