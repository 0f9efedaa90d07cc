#include "core/vocabulary.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <unordered_map>

#include "core/byte_alphabet.h"
#include "core/check.h"

namespace llama2cpp {
namespace {

void check_id(std::int32_t id, std::size_t size, const char* what, bool may_be_missing) {
  if (may_be_missing && id == -1) return;
  if (id < 0 || static_cast<std::size_t>(id) >= size) {
    throw FormatError(cat("vocabulary: ", what, " is ", id, ", expected an id below ", size));
  }
}

void check_merges(const std::vector<Merge>& merges, const std::vector<std::string>& pieces) {
  for (std::size_t i = 0; i < merges.size(); ++i) {
    for (const std::int32_t id : merges[i]) check_id(id, pieces.size(), "an id of a merge", false);
    const auto piece = [&](std::size_t k) -> const std::string& {
      return pieces[static_cast<std::size_t>(merges[i][k])];
    };
    // Merges make pieces longer, so no chain of them comes back to where it began.
    const std::string& joined = piece(2);
    const bool fits = !piece(0).empty() && !piece(1).empty() && joined.size() == piece(0).size() + piece(1).size() &&
                      joined.starts_with(piece(0)) && joined.ends_with(piece(1));
    if (!fits) {
      throw FormatError(cat("vocabulary: merge ", i, " of ", quoted_piece(piece(0)), " and ", quoted_piece(piece(1)),
                            " cannot give ", quoted_piece(joined)));
    }
  }
}

template <class... Rules>
void add_kinds(const std::variant<Rules...>& /*list*/, std::vector<Vocabulary>& all) {
  (all.emplace_back().rules.emplace<Rules>(), ...);
}

}  // namespace

bool Vocabulary::operator==(const Vocabulary& other) const {
  if (rules.index() != other.rules.index() || !same_fields(*this, other)) return false;
  return std::visit(
      [&](const auto& ours) { return same_fields(ours, std::get<std::decay_t<decltype(ours)>>(other.rules)); }, rules);
}

std::string_view kind_name(const Vocabulary& vocabulary) {
  return std::visit([](const auto& rules) { return rules.kName; }, vocabulary.rules);
}

std::string_view kind_title(const Vocabulary& vocabulary) {
  return std::visit([](const auto& rules) { return rules.kTitle; }, vocabulary.rules);
}

std::vector<Vocabulary> all_kinds() {
  std::vector<Vocabulary> all;
  add_kinds(Vocabulary().rules, all);
  return all;
}

std::optional<Vocabulary> vocabulary_of_kind(std::string_view name) {
  for (Vocabulary& one : all_kinds()) {
    if (kind_name(one) == name) return std::move(one);
  }
  return {};
}

std::string list_kinds() {
  std::string names;
  for (const Vocabulary& one : all_kinds()) names += cat(names.empty() ? "" : ", ", kind_name(one));
  return names;
}

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

void check_vocabulary(const Vocabulary& vocabulary) {
  const std::size_t size = vocabulary.pieces.size();
  if (size == 0) throw FormatError("vocabulary: it has no pieces");
  if (size > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max())) {
    throw FormatError(cat("vocabulary: ", size, " pieces are more than ids can number"));
  }
  const std::vector<float>* const scores = find_scores(vocabulary);
  if (vocabulary.types.size() != size) {
    throw FormatError(cat("vocabulary: ", size, " pieces, but ", vocabulary.types.size(), " types"));
  }
  if (scores != nullptr && scores->size() != size) {
    throw FormatError(cat("vocabulary: ", size, " pieces, but ", scores->size(), " scores"));
  }
  const auto* const unigram = std::get_if<UnigramRules>(&vocabulary.rules);
  if (unigram != nullptr && unigram->log_probs.size() != size) {
    throw FormatError(cat("vocabulary: ", size, " pieces, but ", unigram->log_probs.size(), " log_probs"));
  }
  if (unigram != nullptr && unigram->prefix == SpacePrefix::always) {
    throw FormatError("vocabulary: the prefix is \"always\", expected \"where_none\" for a Unigram model");
  }
  if (vocabulary.template_names.size() != vocabulary.template_texts.size()) {
    throw FormatError(cat("vocabulary: ", vocabulary.template_names.size(), " names of chat templates, but ",
                          vocabulary.template_texts.size(), " texts"));
  }
  const auto& names = vocabulary.template_names;
  if (std::adjacent_find(names.begin(), names.end(), std::greater_equal<>()) != names.end()) {
    throw FormatError("vocabulary: the names of chat templates (template_names) are not in ascending order");
  }
  check_id(vocabulary.bos_id, size, "the id of BOS", true);
  for (const std::int32_t id : vocabulary.eos_ids) check_id(id, size, "an id of EOS", false);
  if (const auto* const added = find_added(vocabulary)) {
    for (const AddedToken& token : *added) check_id(token.id, size, "the id of an added token", false);
  }
  const auto* const bytes = std::get_if<ByteBpeRules>(&vocabulary.rules);
  if (bytes != nullptr && bytes->pre_tokenizer != PreTokenizer::splits && !bytes->splits.empty()) {
    throw FormatError(cat("vocabulary: splits are given, and the pre_tokenizer is \"", name_of(bytes->pre_tokenizer),
                          "\", expected \"splits\""));
  }
  check_id(vocabulary.unk_id, size, "the id of the unknown piece", true);
  for (std::size_t i = 0; i < size; ++i) {
    if (vocabulary.types[i] == PieceType::byte && byte_of_piece(vocabulary.pieces[i]) < 0) {
      throw FormatError(cat("vocabulary: piece ", i, ", ", quoted_piece(vocabulary.pieces[i]),
                            ", is of type byte, but not written <0xHH>"));
    }
    if (vocabulary.is<SentencePieceRules>() && std::isnan((*scores)[i])) {
      throw FormatError(
          cat("vocabulary: the score of piece ", i, ", ", quoted_piece(vocabulary.pieces[i]), ", is NaN"));
    }
  }
  for (std::size_t i = 0; unigram != nullptr && i < size; ++i) {
    const double score = unigram->log_probs[i];
    if (std::isnan(score) || score == -std::numeric_limits<double>::infinity()) {
      throw FormatError(cat("vocabulary: the score of piece ", i, ", ", quoted_piece(vocabulary.pieces[i]), ", is ",
                            score, ", expected a number"));
    }
  }
  if (const auto* const merges = find_merges(vocabulary)) check_merges(*merges, vocabulary.pieces);
}

bool fit_pieces(Vocabulary& vocabulary, std::int64_t vocab_size) {
  constexpr std::int64_t kMostHoles = 1 << 20;
  const std::size_t have = vocabulary.pieces.size();
  if (vocab_size < 1 || vocab_size - static_cast<std::int64_t>(have) > kMostHoles) return false;
  const auto size = static_cast<std::size_t>(vocab_size);
  for (std::size_t i = size; i < have; ++i) {
    const PieceType type = vocabulary.types[i];
    if (type != PieceType::control && type != PieceType::user_defined && type != PieceType::unused) return false;
  }
  const auto beyond = [&](std::int32_t id) { return id >= vocab_size; };
  const auto merges_beyond = [&](const Merge& merge) { return std::any_of(merge.begin(), merge.end(), beyond); };
  if (auto* const merges = find_merges(vocabulary)) std::erase_if(*merges, merges_beyond);
  if (auto* const added = find_added(vocabulary)) {
    std::erase_if(*added, [&](const AddedToken& token) { return beyond(token.id); });
  }
  std::erase_if(vocabulary.eos_ids, beyond);
  if (beyond(vocabulary.bos_id)) vocabulary.bos_id = -1;
  if (beyond(vocabulary.unk_id)) vocabulary.unk_id = -1;
  vocabulary.pieces.resize(size);
  vocabulary.types.resize(size, PieceType::unused);
  if (auto* const scores = find_scores(vocabulary)) scores->resize(size, std::numeric_limits<float>::lowest());
  if (auto* const unigram = std::get_if<UnigramRules>(&vocabulary.rules)) {
    unigram->log_probs.resize(size, std::numeric_limits<double>::infinity());
  }
  for (std::size_t i = have; i < size; ++i) vocabulary.pieces[i] = cat("[UNUSED_", i, "]");
  return true;
}

std::vector<Merge> resolve_merges(std::span<const std::string> pieces, std::span<const PieceType> types,
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

  std::vector<Merge> resolved;
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
