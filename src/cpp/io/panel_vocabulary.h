// The tokenizer in a file of panels: every setting of a Vocabulary by its name. What is small is JSON, in the metadata
// "tokenizer"; what is long are tensors:
//   a string         U8 [bytes]                                          tokenizer.chat_template
//   strings          U8 [bytes], one after another, and I32 [n], how      tokenizer.pieces, tokenizer.pieces.bytes
//                    many bytes each has
//   numbers          F32 [n]                                             tokenizer.scores
//   enums            U8 [n]: which of the names that the JSON lists       tokenizer.types
//   merges           I32 [m, 3]: left id, right id, id of both            tokenizer.merges
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "core/vocabulary.h"
#include "io/safetensors.h"

namespace llama2cpp {

struct VocabularyTensor {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::string bytes;
};

struct StoredVocabulary {
  std::string settings;  // the JSON
  std::vector<VocabularyTensor> tensors;
};

StoredVocabulary store_vocabulary(const Vocabulary& vocabulary);

// The opposite; null where a file has no tokenizer. Throws FormatError for one that contradicts itself. Whether ids exist and
// merges fit is for whoever makes a tokenizer of it to check (text/tokenizer.cpp), as for all files.
std::unique_ptr<Vocabulary> read_panel_vocabulary(const SafetensorsHeader& header, const Buffer& file);

}  // namespace llama2cpp
