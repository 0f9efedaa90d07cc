#include "core/vocabulary.h"

#include <cstddef>
#include <unordered_map>

#include "core/byte_alphabet.h"
#include "core/check.h"

namespace llama2cpp {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

int byte_of_piece(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const int high = hex_digit(piece[3]);
  const int low = hex_digit(piece[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

std::optional<PieceType> piece_type_of(std::uint64_t number) {
  switch (number) {
    case 1:
      return PieceType::normal;
    case 2:
      return PieceType::unknown;
    case 3:
      return PieceType::control;
    case 4:
      return PieceType::user_defined;
    case 5:
      return PieceType::unused;
    case 6:
      return PieceType::byte;
    default:
      return {};
  }
}

std::string quoted_piece(std::string_view piece) {
  constexpr std::size_t kLongest = 60;
  std::string out = "'";
  for (const char c : piece.substr(0, kLongest)) out.push_back(c >= ' ' && c <= '~' ? c : '?');
  return out + (piece.size() > kLongest ? "...'" : "'");
}

std::vector<Vocabulary::Merge> resolve_merges(std::span<const std::string> pieces, std::span<const PieceType> types,
                                              std::span<const std::string_view> merges) {
  if (pieces.size() != types.size()) {
    throw FormatError(cat("vocabulary: ", pieces.size(), " pieces, but ", types.size(), " types"));
  }
  std::unordered_map<std::string_view, std::int32_t> ids;
  ids.reserve(pieces.size());
  for (const bool normal : {true, false}) {
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if ((types[i] == PieceType::normal) == normal) ids.emplace(pieces[i], static_cast<std::int32_t>(i));
    }
  }

  std::vector<Vocabulary::Merge> resolved;
  resolved.reserve(merges.size());
  for (const std::string_view merge : merges) {
    const auto fail = [&](std::string_view what) {
      throw FormatError(cat("vocabulary: merge ", resolved.size(), ", ", quoted_piece(merge), ": ", what));
    };
    const std::size_t space = merge.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == merge.size()) fail("expected two pieces");
    const std::optional<std::string> left = bytes_of_stand_ins(merge.substr(0, space));
    const std::optional<std::string> right = bytes_of_stand_ins(merge.substr(space + 1));
    if (!left || !right) fail("it has a character that stands for no byte");
    const auto id_of = [&](const std::string& piece, std::string_view name) {
      const auto found = ids.find(piece);
      if (found == ids.end()) fail(cat("its ", name, " is not in the vocabulary"));
      return found->second;
    };
    resolved.push_back({id_of(*left, "left part"), id_of(*right, "right part"), id_of(*left + *right, "joined piece")});
  }
  return resolved;
}

}  // namespace llama2cpp
