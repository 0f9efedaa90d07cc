// BPE over characters, merges by rank, a space written U+2581: what tokenizer.json files of Llama 2 and Mistral hold.
// The ids are those of `tokenizers`. (sentencepiece's own rule asks for the joined piece alone, and so gives other ids for
// some texts of many equal letters.)
#include <algorithm>
#include <string>

#include "core/check.h"
#include "core/utf8.h"
#include "text/bpe_merge.h"
#include "text/byte_fallback.h"
#include "text/encoder.h"
#include "text/merge_table.h"
#include "text/special_pieces.h"

namespace llama2cpp {
namespace {

class RankedBpeEncoder final : public Encoder {
 public:
  RankedBpeEncoder(const Vocabulary& vocabulary, const RankedBpeRules& rules)
      : rules_(rules),
        characters_(vocabulary.pieces.size()),
        pieces_(vocabulary.pieces.size()),
        merges_(rules.merges),
        special_(vocabulary, rules.merges),
        fallback_(vocabulary) {
    // User-defined pieces at the end of the ids are not the model's: `tokenizers` counts on from the model's last id for
    // tokens that are added to it, and finds them in the text or not at all.
    std::size_t end = vocabulary.pieces.size();
    const auto added = [&](std::size_t i) {
      return vocabulary.types[i] == PieceType::control || vocabulary.types[i] == PieceType::user_defined ||
             vocabulary.types[i] == PieceType::unused;
    };
    while (end > 0 && added(end - 1)) --end;
    for (std::size_t i = 0; i < end; ++i) {
      const PieceType type = vocabulary.types[i];
      // A control piece may be on the way to a longer one; if it remains, special_ sees to it.
      if (type == PieceType::normal || type == PieceType::user_defined || type == PieceType::control) {
        characters_.insert(vocabulary.pieces[i], static_cast<std::int32_t>(i));
      }
    }
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      if (vocabulary.types[i] == PieceType::unused) continue;
      pieces_.insert(vocabulary.pieces[i], static_cast<std::int32_t>(i));
    }
  }

  void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    encode_part(text, rules_.prefix, ids);
  }

  void encode_later(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    encode_part(text, rules_.prefix == SpacePrefix::first_where_none ? SpacePrefix::none : rules_.prefix, ids);
  }

  std::string normalized(std::string_view text) const override { return normalize(text, rules_.prefix); }

  void encode_normalized(std::string_view normalized, bool /*first*/, std::vector<std::int32_t>& ids) const override {
    std::vector<Symbol> symbols = split(normalized);
    if (symbols.empty()) return;
    merge_symbols(normalized, symbols, pieces_, [&](const Symbol& left, const Symbol& right) -> Joined {
      const MergeTable::Entry found = merges_.find(left.id, right.id);
      return {-static_cast<double>(found.rank), found.id};
    });
    bool after_unknown = false;
    for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      const Symbol& symbol = symbols[static_cast<std::size_t>(i)];
      special_.take_apart(symbol.id, symbol.in(normalized), [&](std::int32_t id, std::string_view part) {
        if (id < 0) {
          fallback_.append(part, after_unknown, ids);
        } else {
          ids.push_back(id);
          after_unknown = false;
        }
      });
    }
  }

 private:
  void encode_part(std::string_view text, SpacePrefix prefix, std::vector<std::int32_t>& ids) const {
    encode_normalized(normalize(text, prefix), true, ids);
  }

  // Valid UTF-8 (each byte that is not part of a character becomes U+FFFD), spaces written U+2581.
  static std::string normalize(std::string_view text, SpacePrefix prefix) {
    std::string out;
    if (text.empty()) return out;
    LLAMA2CPP_CHECK(text.size() <= kLongestText / kEscapedSpace.size() - 1,
                    "the text is too long to encode at once: ", text.size(), " bytes");
    out.reserve(text.size() + text.size() / 2);
    const bool begins_with_space = text.starts_with(' ') || text.starts_with(kEscapedSpace);
    if (prefix == SpacePrefix::always || (prefix != SpacePrefix::none && !begins_with_space)) out.append(kEscapedSpace);
    while (!text.empty()) {
      const Utf8Scan scan = scan_utf8(text);
      const bool valid = scan.state == Utf8Scan::State::valid;
      const std::string_view character = valid ? text.substr(0, scan.length) : kReplacementCharacter;
      out.append(character == " " ? kEscapedSpace : character);
      text.remove_prefix(valid ? scan.length : 1);
    }
    return out;
  }

  // Characters, with the piece that each is, or none.
  std::vector<Symbol> split(std::string_view normalized) const {
    std::vector<Symbol> symbols;
    symbols.reserve(normalized.size());
    for (std::size_t at = 0; at < normalized.size();) {
      const std::size_t length = std::min(utf8_length_of_lead(normalized[at]), normalized.size() - at);
      Symbol symbol;
      symbol.begin = static_cast<std::uint32_t>(at);
      symbol.length = static_cast<std::uint32_t>(length);
      symbol.id = characters_.find(normalized.substr(at, length));
      symbol.frozen = symbol.id < 0;
      append_symbol(symbols, symbol);
      at += length;
    }
    return symbols;
  }

  const RankedBpeRules& rules_;
  PieceTable characters_;  // what a character can be; nothing that was added to the model
  PieceTable pieces_;      // what merges can make
  MergeTable merges_;
  SpecialPieces special_;
  ByteFallback fallback_;
};

}  // namespace

std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const RankedBpeRules& rules) {
  return std::make_unique<RankedBpeEncoder>(vocabulary, rules);
}

}  // namespace llama2cpp
