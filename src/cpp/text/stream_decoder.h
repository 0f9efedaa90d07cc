// StreamDecoder: ids in, one at a time; text out, whole UTF-8 characters only.
#pragma once

#include <cstdint>
#include <string>

#include "core/utf8.h"
#include "text/tokenizer.h"

namespace llama2cpp {

// All that push and flush return, joined, is what decode gives for the same ids, with U+FFFD for invalid bytes.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer);

  // The text that this id completes: may be empty, and may begin with bytes of the ids before.
  std::string push(std::int32_t id);

  // U+FFFD if a character was left unfinished, else nothing; then the decoder begins a new sequence.
  std::string flush();

 private:
  Tokenizer tokenizer_;
  Utf8Stream characters_;
  bool strips_space_;
};

}  // namespace llama2cpp
