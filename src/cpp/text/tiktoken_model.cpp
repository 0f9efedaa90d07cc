// tiktoken's vocabulary file: a line for each piece, its bytes in base64, a space, its rank. The ranks count up from 0
// and are the ids. Words, special pieces and their ids are not in the file: they are those that Meta's code gives Llama 3.
#include <algorithm>
#include <array>
#include <bitset>
#include <optional>
#include <string>
#include <string_view>

#include "core/base64.h"
#include "core/check.h"
#include "text/piece_table.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kLlama3Ranks = 128000;
constexpr std::size_t kSpecialPieces = 256;

// In the order of their ids, the first is one above the last rank. The rest are <|reserved_special_token_2|> and so on.
constexpr std::string_view kSpecials[] = {
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
};
constexpr std::int32_t kBeginOfText = 0;
constexpr std::array<std::int32_t, 3> kEnds = {1, 9, 8};  // end of text, of turn, of message

void refuse_equal_pieces(const std::vector<std::string>& pieces) {
  PieceTable table(pieces.size());
  for (std::size_t rank = 0; rank < pieces.size(); ++rank) {
    const auto id = static_cast<std::int32_t>(rank);
    table.insert(pieces[rank], id);
    if (const std::int32_t first = table.find(pieces[rank]); first != id) {
      throw FormatError(cat("tiktoken model: line ", rank + 1, ": the piece ", quoted_piece(pieces[rank]), " has rank ",
                            first, " already"));
    }
  }
}

void add_piece(Vocabulary& vocabulary, std::string piece, PieceType type) {
  vocabulary.pieces.push_back(std::move(piece));
  vocabulary.types.push_back(type);
}

}  // namespace

Vocabulary read_tiktoken_model(std::span<const std::byte> file) {
  const std::string_view text(reinterpret_cast<const char*>(file.data()), file.size());
  Vocabulary vocabulary;
  auto& rules = vocabulary.rules.emplace<ByteBpeRules>();
  rules.pre_tokenizer = PreTokenizer::llama3;
  rules.merges_by_id = true;
  rules.ignore_merges = true;
  vocabulary.unk_id = -1;

  std::bitset<256> bytes;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t rank = vocabulary.pieces.size();
    const std::string_view line = text.substr(at, text.find('\n', at) - at);
    const auto fail = [&](const std::string& what) {
      throw FormatError(cat("tiktoken model: line ", rank + 1, " at byte ", at, ": ", what));
    };
    if (rank == kLlama3Ranks) fail(cat("expected at most Llama 3's ", kLlama3Ranks, " pieces, found more"));
    const std::size_t space = std::min(line.find(' '), line.size());
    std::optional<std::string> piece = base64_bytes(line.substr(0, space));
    if (!piece || piece->empty()) fail(cat("expected a piece in base64, found ", quoted_piece(line.substr(0, space))));
    const std::string_view tail = line.substr(space);
    if (!tail.starts_with(' ') || tail.substr(1) != std::to_string(rank)) {
      fail(cat("expected a space and the rank ", rank, ", found ", quoted_piece(tail)));
    }
    if (piece->size() == 1) bytes[static_cast<std::uint8_t>((*piece)[0])] = true;
    add_piece(vocabulary, std::move(*piece), PieceType::normal);
    at += line.size() + 1;
  }
  if (!bytes.all()) {
    throw FormatError(cat("tiktoken model: expected each of the 256 bytes as a piece, found ", bytes.count(), " in ",
                          vocabulary.pieces.size(), " pieces"));
  }

  refuse_equal_pieces(vocabulary.pieces);

  const auto first = static_cast<std::int32_t>(vocabulary.pieces.size());
  for (std::size_t i = 0; i < kSpecialPieces; ++i) {
    const std::size_t named = std::size(kSpecials);
    add_piece(vocabulary, i < named ? std::string(kSpecials[i]) : cat("<|reserved_special_token_", i - named + 2, "|>"),
              PieceType::control);
  }
  vocabulary.bos_id = first + kBeginOfText;
  vocabulary.eos_ids.clear();
  for (const std::int32_t end : kEnds) vocabulary.eos_ids.push_back(first + end);
  return vocabulary;
}

}  // namespace llama2cpp
