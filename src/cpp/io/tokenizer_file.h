// The tokenizer of a file of any kind that has one.
#pragma once

#include <cstdint>
#include <string>

#include "core/vocabulary.h"

namespace llama2cpp {

// A GGUF, a tokenizer.json with what lies beside it, or what text/readers.h reads; told apart by content. `vocab_size` is how
// many pieces of a tokenizer.bin are read (0: all that the file holds); others may have fewer, not more (of a tokenizer.json,
// added tokens beyond it are left out). Throws FormatError, which begins with the path, and std::system_error.
Vocabulary open_tokenizer_file(const std::string& path, std::int64_t vocab_size);

}  // namespace llama2cpp
