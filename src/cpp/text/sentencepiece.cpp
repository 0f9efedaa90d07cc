// SentencePiece's BPE for models with the identity normaliser: spaces become U+2581, characters are merged, and what no
// piece spells becomes bytes or the unknown piece. The ids are the sentencepiece library's.
#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>

#include "core/check.h"
#include "core/utf8.h"
#include "text/bpe_merge.h"
#include "text/byte_fallback.h"
#include "text/encoder.h"
#include "text/prefix_matcher.h"

namespace llama2cpp {
namespace {

class SentencePieceEncoder final : public Encoder {
 public:
  SentencePieceEncoder(const Vocabulary& vocabulary, const SentencePieceRules& rules)
      : vocabulary_(vocabulary), rules_(rules), pieces_(vocabulary.pieces.size()), fallback_(vocabulary) {
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
  }

  void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    const std::string normalized = normalize(text);
    if (normalized.empty()) return;
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
  bool unused(std::int32_t id) const { return vocabulary_.types[static_cast<std::size_t>(id)] == PieceType::unused; }

  // What the text is before merging: valid UTF-8 (each byte that is not part of a character becomes U+FFFD), a space
  // before it, spaces written as U+2581, and, if the model wants it, runs of spaces as one and none at either end.
  std::string normalize(std::string_view text) const {
    const bool tidy = rules_.remove_extra_whitespaces;
    if (tidy) {
      while (!text.empty() && next_unit(text).first == " ") text.remove_prefix(1);
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
  PieceTable pieces_;  // those that text can become
  ByteFallback fallback_;
  PrefixMatcher user_defined_;
};

}  // namespace

std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const SentencePieceRules& rules) {
  return std::make_unique<SentencePieceEncoder>(vocabulary, rules);
}

}  // namespace llama2cpp
