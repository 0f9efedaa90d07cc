// What the names in GGUF's tokenizer.ggml.pre mean.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "core/splits.h"

namespace llama2cpp {

// Names that mean one cut, with what llama.cpp takes beside it where the file does not say. The first of them is written,
// and shown where a name is not known.
struct GgufPreTokenizer {
  std::vector<std::string_view> names;
  PreTokenizer cut;
  bool ignore_merges;
  bool add_bos;
};

std::span<const GgufPreTokenizer> gguf_pre_tokenizers();

// Null for a name that is not known.
const GgufPreTokenizer* find_gguf_pre_tokenizer(std::string_view name);

}  // namespace llama2cpp
