// The parts of reading a GGUF file's model, for gguf_model.cpp. (Its Reader is in io/checkpoint.h.)
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/vocabulary.h"
#include "io/families.h"
#include "io/gguf.h"

namespace llama2cpp {

// The family of a file's architecture. Throws FormatError for one that is not in families.h.
const Family& read_gguf_family(const Gguf& gguf);

// Sizes and constants. Throws FormatError for metadata that would change the result in a way that is not implemented.
Config read_gguf_config(const Gguf& gguf, const Family& family);

// A model in several files, NAME-00001-of-00003.gguf and so on: the first has the metadata, and each some of the tensors.
// Given the first, adds the tensors of the others, which `open` opens by their paths, and returns those files. Throws
// FormatError for another part than the first, and for parts that do not belong together.
std::vector<Buffer> add_gguf_parts(Gguf& gguf, const std::string& path,
                                   const std::function<Buffer(const std::string&)>& open);

struct GgufVocabulary {
  std::unique_ptr<Vocabulary> vocabulary;  // null: there is none, or none that we know
  std::string no_vocabulary_reason;        // which of the two, or what is wrong with it
};

inline constexpr std::int64_t kAnySize = 0;

// Tokenizer data that contradict themselves are no vocabulary. Otherwise it has `vocab_size` pieces, and warnings where
// something was left out.
GgufVocabulary read_gguf_vocabulary(const Gguf& gguf, std::int64_t vocab_size);

}  // namespace llama2cpp
