// Pre-tokenisers of byte-level BPE: they cut a text into words, each of which is encoded by itself. The files' regular
// expressions are written out by hand, so that every text takes linear time.
#pragma once

#include <cstddef>
#include <string_view>

#include "core/vocabulary.h"

namespace llama2cpp {

// The length in bytes of the first word of `text`, which is not empty. Words follow each other without gaps, and where
// one ends does not depend on the words before it.
//
// gpt2:    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// llama3:  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
//          |\s*[\r\n]+|\s+(?!\S)|\s+
// qwen2:   the same with \p{N} for \p{N}{1,3}
// seed_coder: qwen2's with  ?[^\s\p{L}\p{N}\r\n]+ for  ?[^\s\p{L}\p{N}]+[\r\n]*
// smollm:  each \p{N} is a word, and each text between two of them is cut as by gpt2, as if it stood alone
// tekken:  [^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+
//          |[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*
//          |\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
// deepseek_coder: cuts one after the other: [\r\n], then \s?\p{L}+, then \s?\p{P}+,
//          then [\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]+, then \p{N}
// ggml_default: llama.cpp's own, four cuts one after the other, each of which cuts what the one before has left as if it
//          stood alone: [\p{P}$+<=>^~|]+, then gpt2's, then \p{N}+, then [0-9][0-9][0-9]
//
// The classes are those of Unicode 16.0. A byte that belongs to no character is a character of its own that is neither
// letter nor number nor space.
std::size_t first_word(PreTokenizer kind, std::string_view text);

// Bytes of the white space that a text begins or ends with.
std::size_t spaces_at_start(std::string_view text);
std::size_t spaces_at_end(std::string_view text);

}  // namespace llama2cpp
