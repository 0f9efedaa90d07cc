// SentencePiece's BPE and Unigram: the text is normalised, spaces become U+2581, characters are merged or the cut with the
// best scores is looked for, and what no piece spells becomes bytes or the unknown piece. The ids are the sentencepiece
// library's.
#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "text/bpe_merge.h"
#include "text/byte_fallback.h"
#include "text/charsmap.h"
#include "text/encoder.h"
#include "text/prefix_matcher.h"
#include "text/viterbi.h"

namespace llama2cpp {
namespace {

class SentencePieceEncoder final : public Encoder {
 public:
  SentencePieceEncoder(const Vocabulary& vocabulary, const SentencePieceRules& rules)
      : vocabulary_(vocabulary),
        rules_(rules),
        charsmap_(rules.charsmap),
        pieces_(vocabulary.pieces.size()),
        fallback_(vocabulary) {
    std::vector<std::pair<std::string, std::int32_t>> user_defined;
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      const std::string& piece = vocabulary.pieces[i];
      const auto id = static_cast<std::int32_t>(i);
      switch (vocabulary.types[i]) {
        case PieceType::user_defined:
          user_defined.emplace_back(piece, id);
          [[fallthrough]];
        case PieceType::normal:
        case PieceType::unused:
          pieces_.insert(piece, id);
          break;
        case PieceType::byte:
        case PieceType::unknown:
        case PieceType::control:
          break;  // never merged from text
      }
    }
    user_defined_ = PrefixMatcher(std::move(user_defined));
    if (rules.unigram) viterbi_.emplace(viterbi_of(vocabulary, rules));
  }

  void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    const std::string normalized = normalize(text);
    if (normalized.empty()) return;
    if (viterbi_) return find_best(normalized, ids);
    std::vector<Symbol> symbols = split(normalized);

    // A merge may pass through an unused piece on its way to a longer one. One that remains is taken apart again into
    // its halves. They are the same wherever it is met: only merges inside it have led to them.
    std::unordered_map<std::int32_t, std::pair<std::string_view, std::string_view>> halves;
    merge_symbols(normalized, symbols, pieces_, [&](const Symbol& left, const Symbol& right) -> Joined {
      const std::int32_t id = pieces_.find(left.with(right, normalized));
      if (id < 0) return {};
      if (unused(id)) halves[id] = {left.in(normalized), right.in(normalized)};
      return {rules_.scores[static_cast<std::size_t>(id)], id};
    });

    bool after_unknown = false;
    std::vector<std::string_view> parts;  // of one symbol, the next one last
    for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      parts.push_back(symbols[static_cast<std::size_t>(i)].in(normalized));
      while (!parts.empty()) {
        const std::string_view part = parts.back();
        parts.pop_back();
        const std::int32_t id = pieces_.find(part);
        if (id >= 0 && !unused(id)) {
          ids.push_back(id);
          after_unknown = false;
        } else if (const auto split_again = halves.find(id); split_again != halves.end()) {
          parts.push_back(split_again->second.second);
          parts.push_back(split_again->second.first);
        } else {
          fallback_.append(part, after_unknown, ids);
        }
      }
    }
  }

 private:
  static Viterbi viterbi_of(const Vocabulary& vocabulary, const SentencePieceRules& rules) {
    constexpr float kPenalty = 10;    // of a character that is no piece, below the lowest score
    constexpr double kPerByte = 0.1;  // of a user-defined piece, but for its first byte
    std::vector<Viterbi::Piece> pieces;
    float lowest = std::numeric_limits<float>::max();
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      const PieceType type = vocabulary.types[i];
      if (type != PieceType::normal && type != PieceType::user_defined) continue;
      const std::string& piece = vocabulary.pieces[i];
      float score = rules.scores[i];
      if (type == PieceType::normal) {
        lowest = std::min(lowest, score);
      } else {  // as in the library, whatever the file says
        score = static_cast<float>(kPerByte * (static_cast<double>(piece.size()) - 1));
      }
      if (piece.empty()) continue;
      pieces.push_back({piece, static_cast<std::int32_t>(i), static_cast<double>(score)});
    }
    return {std::move(pieces), {static_cast<double>(lowest - kPenalty), true}};
  }

  void find_best(std::string_view normalized, std::vector<std::int32_t>& ids) const {
    bool after_unknown = false;
    viterbi_->cut(normalized, [&](std::string_view part, std::int32_t id) {
      if (id < 0) return fallback_.append(part, after_unknown, ids);
      ids.push_back(id);
      after_unknown = false;
    });
  }

  bool unused(std::int32_t id) const { return vocabulary_.types[static_cast<std::size_t>(id)] == PieceType::unused; }

  // What the text is before merging: valid UTF-8 (each byte that is not part of a character becomes U+FFFD), a space
  // before it, spaces written as U+2581, and, if the model wants it, runs of spaces as one and none at either end.
  std::string normalize(std::string_view text) const {
    const bool tidy = rules_.remove_extra_whitespaces;
    if (tidy) {
      while (!text.empty()) {
        const auto [unit, consumed] = next_unit(text);
        if (unit != " ") break;
        text.remove_prefix(consumed);
      }
    }
    std::string out;
    if (text.empty()) return out;
    LLAMA2CPP_CHECK(text.size() <= kLongestText / kEscapedSpace.size() - 1,
                    "the text is too long to encode at once: ", text.size(), " bytes");
    out.reserve(text.size() + text.size() / 2);
    if (rules_.add_space_prefix) out.append(kEscapedSpace);

    bool after_space = tidy;
    while (!text.empty()) {
      auto [unit, consumed] = next_unit(text);
      text.remove_prefix(consumed);
      while (after_space && unit.starts_with(' ')) unit.remove_prefix(1);
      if (unit.empty()) continue;
      after_space = tidy && unit.ends_with(' ');
      for (const char c : unit) {
        if (c == ' ') {
          out.append(kEscapedSpace);
        } else {
          out.push_back(c);
        }
      }
    }
    if (tidy) {
      while (out.ends_with(kEscapedSpace)) out.resize(out.size() - kEscapedSpace.size());
    }
    return out;
  }

  // What stands for the start of the text, and how many bytes of the text that is.
  std::pair<std::string_view, std::size_t> next_unit(std::string_view text) const {
    if (const auto match = user_defined_.longest_prefix(text); match.id >= 0) {
      return {text.substr(0, match.length), match.length};
    }
    if (const auto match = charsmap_.longest(text); match.length > 0) return {match.text, match.length};
    const Utf8Scan scan = scan_utf8(text);
    if (scan.state != Utf8Scan::State::valid) return {kReplacementCharacter, 1};
    return {text.substr(0, scan.length), scan.length};
  }

  // Characters and user-defined pieces.
  std::vector<Symbol> split(std::string_view normalized) const {
    std::vector<Symbol> symbols;
    symbols.reserve(normalized.size());
    for (std::size_t at = 0; at < normalized.size();) {
      const std::string_view rest = normalized.substr(at);
      const auto match = user_defined_.longest_prefix(rest);
      Symbol symbol;
      symbol.frozen = match.id >= 0;
      const std::size_t length = symbol.frozen ? match.length : std::min(utf8_length_of_lead(rest[0]), rest.size());
      symbol.begin = static_cast<std::uint32_t>(at);
      symbol.length = static_cast<std::uint32_t>(length);
      append_symbol(symbols, symbol);
      at += length;
    }
    return symbols;
  }

  const Vocabulary& vocabulary_;
  const SentencePieceRules& rules_;
  Charsmap charsmap_;
  std::optional<Viterbi> viterbi_;  // of a Unigram model
  PieceTable pieces_;               // those that text can become
  ByteFallback fallback_;
  PrefixMatcher user_defined_;
};

}  // namespace

std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const SentencePieceRules& rules) {
  return std::make_unique<SentencePieceEncoder>(vocabulary, rules);
}

}  // namespace llama2cpp
