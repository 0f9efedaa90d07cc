// BPE over characters, merges by rank, a space written U+2581: what tokenizer.json files of Llama 2 and Mistral hold.
// The ids are those of `tokenizers`. (sentencepiece's own rule asks for the joined piece alone, and so gives other ids for
// some texts of many equal letters.)
#include <algorithm>
#include <array>
#include <string>

#include "core/check.h"
#include "text/bpe_merge.h"
#include "text/encoder.h"
#include "text/merge_table.h"
#include "text/utf8.h"

namespace llama2cpp {
namespace {

using Prefix = Vocabulary::Prefix;

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

class RankedBpeEncoder final : public Encoder {
 public:
  explicit RankedBpeEncoder(const Vocabulary& vocabulary)
      : vocabulary_(vocabulary), pieces_(vocabulary.pieces.size()), merges_(vocabulary.merges) {
    byte_ids_.fill(-1);
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      const auto id = static_cast<std::int32_t>(i);
      if (vocabulary.types[i] == PieceType::unused) continue;
      pieces_.insert(vocabulary.pieces[i], id);
      if (vocabulary.types[i] == PieceType::byte) {
        byte_ids_[static_cast<std::size_t>(byte_of_piece(vocabulary.pieces[i]))] = id;
      }
    }
  }

  void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    encode_part(text, vocabulary_.prefix, ids);
  }

  void encode_later(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    if (bos_id >= 0) ids.push_back(bos_id);
    encode_part(text, vocabulary_.prefix == Prefix::first_where_none ? Prefix::none : vocabulary_.prefix, ids);
  }

 private:
  void encode_part(std::string_view text, Prefix prefix, std::vector<std::int32_t>& ids) const {
    const std::string normalized = normalize(text, prefix);
    std::vector<Symbol> symbols = split(normalized);
    if (symbols.empty()) return;
    merge_symbols(normalized, symbols, pieces_, [&](const Symbol& left, const Symbol& right) -> Joined {
      const MergeTable::Entry found = merges_.find(left.id, right.id);
      return {-static_cast<double>(found.rank), found.id};
    });
    bool after_unknown = false;
    for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      const Symbol& symbol = symbols[static_cast<std::size_t>(i)];
      if (symbol.id < 0) {
        append_unknown(symbol.in(normalized), after_unknown, ids);
      } else {
        ids.push_back(symbol.id);
        after_unknown = false;
      }
    }
  }

  // Valid UTF-8 (each byte that is not part of a character becomes U+FFFD), spaces written U+2581.
  static std::string normalize(std::string_view text, Prefix prefix) {
    std::string out;
    if (text.empty()) return out;
    LLAMA2CPP_CHECK(text.size() <= kLongestText / kSpace.size() - 1,
                    "the text is too long to encode at once: ", text.size(), " bytes");
    out.reserve(text.size() + text.size() / 2);
    const bool begins_with_space = text.starts_with(' ') || text.starts_with(kSpace);
    if (prefix == Prefix::always || (prefix != Prefix::none && !begins_with_space)) out.append(kSpace);
    while (!text.empty()) {
      const Utf8Scan scan = scan_utf8(text);
      const bool valid = scan.state == Utf8Scan::State::valid;
      const std::string_view character = valid ? text.substr(0, scan.length) : kReplacementCharacter;
      out.append(character == " " ? kSpace : character);
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
      symbol.id = pieces_.find(normalized.substr(at, length));
      symbol.frozen = symbol.id < 0;
      append_symbol(symbols, symbol);
      at += length;
    }
    return symbols;
  }

  // Its bytes where the vocabulary has them all, else the unknown piece, once for a whole run.
  void append_unknown(std::string_view character, bool& after_unknown, std::vector<std::int32_t>& ids) const {
    const auto byte_id = [&](char c) { return byte_ids_[static_cast<std::uint8_t>(c)]; };
    if (std::all_of(character.begin(), character.end(), [&](char c) { return byte_id(c) >= 0; })) {
      for (const char c : character) ids.push_back(byte_id(c));
      after_unknown = false;
      return;
    }
    LLAMA2CPP_CHECK(vocabulary_.unk_id >= 0, "a character of the text is not in the vocabulary, nor are its bytes");
    if (!after_unknown) ids.push_back(vocabulary_.unk_id);
    after_unknown = true;
  }

  const Vocabulary& vocabulary_;
  PieceTable pieces_;
  MergeTable merges_;
  std::array<std::int32_t, 256> byte_ids_;  // -1: none
};

}  // namespace

std::unique_ptr<const Encoder> make_ranked_bpe_encoder(const Vocabulary& vocabulary) {
  return std::make_unique<RankedBpeEncoder>(vocabulary);
}

}  // namespace llama2cpp
