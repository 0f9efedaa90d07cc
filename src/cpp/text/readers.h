// Tokenizer files: each reader turns the bytes of one format into a Vocabulary, or throws FormatError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/vocabulary.h"

namespace llama2cpp {

// Any of the files below, told apart by content. `vocab_size` is how many pieces of a tokenizer.bin are read (0: all that the
// file holds); the others may have fewer, not more.
Vocabulary read_tokenizer_file(std::span<const std::byte> file, std::int64_t vocab_size);

// llama2.c's tokenizer.bin. It does not say how many pieces it has: `vocab_size` does, and what follows them is not
// looked at; with 0 the file must end after a piece.
Vocabulary read_tokenizer_bin(std::span<const std::byte> file, std::int64_t vocab_size);

// SentencePiece's .model (the protocol buffer ModelProto): BPE or Unigram.
Vocabulary read_sentencepiece_model(std::span<const std::byte> file);

// Meta's tokenizer.model of Llama 3, a tiktoken file: a line "base64 rank" for each piece. The special pieces, which it
// does not have, are Llama 3's, with the ids after the last rank.
Vocabulary read_tiktoken_model(std::span<const std::byte> file);

// Throws FormatError for bytes that are no charsmap (text/charsmap.h).
void check_charsmap(std::string_view bytes);

}  // namespace llama2cpp
