// llama2.c's tokenizer.bin: int32 max_token_length, then for each piece float score, int32 length, its bytes.
#include <bit>
#include <string>

#include "core/check.h"
#include "text/encoder.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kHeaderBytes = 4;
constexpr std::size_t kPieceHeaderBytes = 8;

// Little-endian, whatever the machine.
std::uint32_t read_u32(std::span<const std::byte> file, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value |= std::to_integer<std::uint32_t>(file[offset + i]) << (8 * i);
  return value;
}

PieceType type_of(std::int32_t id, std::string_view piece) {
  if (id == 0) return PieceType::unknown;
  if (id == 1 || id == 2) return PieceType::control;
  return byte_of_piece(piece) >= 0 ? PieceType::byte : PieceType::normal;
}

}  // namespace

Vocabulary read_tokenizer_bin(std::span<const std::byte> file, std::int64_t vocab_size) {
  LLAMA2CPP_CHECK(vocab_size >= 0, "vocab_size is ", vocab_size, ", expected 0 or more");
  if (file.size() < kHeaderBytes) {
    throw FormatError(cat("tokenizer.bin: expected at least ", kHeaderBytes, " bytes, found ", file.size()));
  }
  const auto longest = static_cast<std::int32_t>(read_u32(file, 0));

  Vocabulary vocabulary;
  auto& rules = vocabulary.rules.emplace<Llama2cRules>();
  std::size_t offset = kHeaderBytes;
  for (std::int64_t id = 0; vocab_size > 0 ? id < vocab_size : offset < file.size(); ++id) {
    const auto where = [&] { return cat("tokenizer.bin: piece ", id, " at byte ", offset); };
    const std::size_t left = file.size() - offset;
    if (left < kPieceHeaderBytes) {
      throw FormatError(cat(where(), ": expected a score and a length (", kPieceHeaderBytes, " bytes), found ", left,
                            " bytes", vocab_size > 0 ? cat("; ", vocab_size, " pieces were asked for") : ""));
    }
    const float score = std::bit_cast<float>(read_u32(file, offset));
    const auto length = static_cast<std::int32_t>(read_u32(file, offset + 4));
    if (length < 1 || length > longest) {
      throw FormatError(
          cat(where(), ": expected a length from 1 to the file's longest, ", longest, ", found ", length));
    }
    const auto bytes = static_cast<std::size_t>(length);
    if (bytes > left - kPieceHeaderBytes) {
      throw FormatError(cat(where(), ": expected ", bytes, " bytes of text, found ", left - kPieceHeaderBytes));
    }
    const auto text = file.subspan(offset + kPieceHeaderBytes, bytes);
    vocabulary.pieces.emplace_back(reinterpret_cast<const char*>(text.data()), text.size());
    rules.scores.push_back(score);
    vocabulary.types.push_back(type_of(static_cast<std::int32_t>(id), vocabulary.pieces.back()));
    offset += kPieceHeaderBytes + bytes;
  }
  if (vocabulary.pieces.size() < 3) {
    throw FormatError(cat("tokenizer.bin: expected at least the pieces unknown, BOS and EOS, found ",
                          vocabulary.pieces.size(), " by byte ", offset));
  }
  vocabulary.unk_surface = vocabulary.pieces[0];
  return vocabulary;
}

}  // namespace llama2cpp
