#include "core/vocabulary.h"

#include <cstddef>
#include <optional>
#include <unordered_map>

#include "core/byte_alphabet.h"
#include "core/check.h"

namespace llama2cpp {

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
