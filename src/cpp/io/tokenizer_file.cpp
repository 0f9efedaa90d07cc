#include "io/tokenizer_file.h"

#include <algorithm>
#include <span>

#include "core/buffer.h"
#include "core/check.h"
#include "core/file.h"
#include "core/file_kind.h"
#include "io/checkpoint.h"
#include "io/hf.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

std::string begin_of(const std::string& path) {
  const File file(path);
  std::string begin(std::min<std::size_t>(file.size(), 4), '\0');
  file.read(0, std::as_writable_bytes(std::span(begin)));
  return begin;
}

Vocabulary open_tokenizer_alone(const std::string& path, std::int64_t vocab_size) {
  // Read, not mapped: what the vocabulary keeps is a copy, and then nothing that happens to the file matters.
  const Buffer file = Buffer::file(path, false, kMostText);
  try {
    Vocabulary vocabulary = read_tokenizer_file({file.data(), file.size()}, vocab_size);
    check_vocabulary(vocabulary);
    return vocabulary;
  } catch (const FormatError& error) {
    throw FormatError(cat(path, ": ", error.what()));
  }
}

}  // namespace

Vocabulary open_tokenizer_file(const std::string& path, std::int64_t vocab_size) {
  LLAMA2CPP_CHECK(vocab_size >= 0, "vocab_size is ", vocab_size, ", expected 0 or more");
  const std::string begin = begin_of(path);
  if (begin.starts_with('{')) return open_tokenizer_json(path, vocab_size);
  if (begin != "GGUF") return open_tokenizer_alone(path, vocab_size);
  Vocabulary vocabulary = open_checkpoint_vocabulary(path);
  const auto pieces = static_cast<std::int64_t>(vocabulary.pieces.size());
  if (vocab_size > 0 && pieces > vocab_size) {
    throw FormatError(cat(path, ": expected at most ", vocab_size, " pieces, found ", pieces));
  }
  return vocabulary;
}

}  // namespace llama2cpp
