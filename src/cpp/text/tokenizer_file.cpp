// Which of the tokenizer files it is, by its first bytes.
#include <string_view>

#include "core/check.h"
#include "core/file_kind.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

// A tokenizer.bin begins with the length of its longest piece, so the upper bytes of that number are zero. In a .model
// a field follows its tag and length there, and no field has a zero tag.
bool looks_like_tokenizer_bin(std::span<const std::byte> file) {
  return file.size() >= 4 && file[2] == std::byte{0} && file[3] == std::byte{0};
}

// A tiktoken file begins with a piece in base64 and the rank 0. Its first byte is none that a .model can begin with:
// those are line end, 0x12, 0x1A, double quote and asterisk.
bool looks_like_tiktoken(std::span<const std::byte> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  constexpr std::string_view kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::size_t end = text.find_first_not_of(kBase64);
  return end != 0 && end != std::string_view::npos && (text[end] == '=' || text[end] == ' ');
}

// The first byte of a .model is the tag of one of ModelProto's fields 1 to 5, all of them strings or messages.
bool looks_like_model(std::span<const std::byte> file) {
  const auto tag = file.empty() ? 0u : std::to_integer<unsigned>(file[0]);
  return (tag & 7) == 2 && tag >> 3 >= 1 && tag >> 3 <= 5;
}

}  // namespace

Vocabulary read_tokenizer_file(std::span<const std::byte> file, std::int64_t vocab_size) {
  LLAMA2CPP_CHECK(vocab_size >= 0, "vocab_size is ", vocab_size, ", expected 0 or more");
  refuse_stand_in(file, "a tokenizer");
  if (looks_like_tokenizer_bin(file)) return read_tokenizer_bin(file, vocab_size);
  const bool tiktoken = looks_like_tiktoken(file);
  if (!tiktoken && !looks_like_model(file)) {
    throw FormatError(
        cat("expected llama2.c's tokenizer.bin, a SentencePiece .model or Llama 3's tokenizer.model, found "
            "a file of ",
            file.size(), " bytes that begins like none of them"));
  }
  Vocabulary vocabulary = tiktoken ? read_tiktoken_model(file) : read_sentencepiece_model(file);
  const auto pieces = static_cast<std::int64_t>(vocabulary.pieces.size());
  if (vocab_size > 0 && pieces > vocab_size) {
    throw FormatError(cat(".model: expected at most ", vocab_size, " pieces, found ", pieces));
  }
  return vocabulary;
}

}  // namespace llama2cpp
