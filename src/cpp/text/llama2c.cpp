// llama2.c's rule for text -> ids: whole characters, else their bytes, then merges. It joins the *names* of two ids and
// looks the result up, so a byte takes part as "<0x0A>" and BOS as "\n<s>\n"; names are C strings and end at a NUL.
#include <string>

#include "core/check.h"
#include "text/bpe_merge.h"
#include "text/encoder.h"

namespace llama2cpp {
namespace {

constexpr float kLowestScore = -1e10f;  // pieces that do not score above it are never merged into
constexpr std::int32_t kFirstByteId = 3;
constexpr std::size_t kLongestCharacter = 4;

std::string_view name_of(const std::string& piece) { return std::string_view(piece).substr(0, piece.find('\0')); }

class Llama2cEncoder final : public Encoder {
 public:
  Llama2cEncoder(const Vocabulary& vocabulary, const Llama2cRules& rules, bool puts_space)
      : vocabulary_(vocabulary),
        rules_(rules),
        puts_space_(puts_space),
        pieces_(vocabulary.pieces.size()),
        merges_(vocabulary.pieces.size()) {
    for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
      const std::string_view name = name_of(vocabulary.pieces[i]);
      const auto id = static_cast<std::int32_t>(i);
      pieces_.insert(name, id);
      if (rules.scores[i] > kLowestScore) merges_.insert(name, id);
    }
  }

  void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    // The names of all ids one after the other: a pair's joined name is then a slice of it.
    std::string names;
    std::vector<Symbol> symbols;
    symbols.reserve(text.size() + 2);
    if (bos_id >= 0) append_id(bos_id, names, symbols);
    if (puts_space_ && !text.empty()) append_character(" ", 0, names, symbols);
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t length = character_length(text.substr(at));
      append_character(text.substr(at, length), at, names, symbols);
      at += length;
    }
    if (symbols.empty()) return;

    merge_symbols(names, symbols, merges_, [&](const Symbol& left, const Symbol& right) -> Joined {
      const std::int32_t id = merges_.find(left.with(right, names));
      return {id < 0 ? 0.0 : rules_.scores[static_cast<std::size_t>(id)], id};
    });
    const std::size_t bos_length = bos_id < 0 ? 0 : name_of(piece(bos_id)).size();
    for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      const Symbol& symbol = symbols[static_cast<std::size_t>(i)];
      const bool is_bos = i == 0 && bos_id >= 0 && symbol.length == bos_length;
      if (is_bos || vocabulary_.types[static_cast<std::size_t>(symbol.id)] != PieceType::control) {
        ids.push_back(symbol.id);
      } else {  // llama2.c finds BOS and EOS by their names too; here no text can spell them
        for (const char c : symbol.in(names)) ids.push_back(byte_id(c));
      }
    }
  }

 private:
  // Any byte, then as many continuation bytes as follow it, four bytes in all at most.
  static std::size_t character_length(std::string_view text) {
    std::size_t length = 1;
    while (length < text.size() && length < kLongestCharacter && (text[length] & 0xC0) == 0x80) ++length;
    return length;
  }

  const std::string& piece(std::int32_t id) const { return vocabulary_.pieces[static_cast<std::size_t>(id)]; }

  std::int32_t byte_id(char c) const {
    const std::int32_t id = kFirstByteId + static_cast<std::uint8_t>(c);
    LLAMA2CPP_CHECK(static_cast<std::size_t>(id) < vocabulary_.pieces.size(),
                    "a character of the text is a special piece of the vocabulary, which text does not become, and its "
                    "byte ",
                    id - kFirstByteId, " would be id ", id, " of ", vocabulary_.pieces.size());
    return id;
  }

  void append_character(std::string_view character, std::size_t offset, std::string& names,
                        std::vector<Symbol>& symbols) const {
    if (const std::int32_t id = pieces_.find(character); id >= 0) return append_id(id, names, symbols);
    for (const char c : character) {
      const std::int32_t id = kFirstByteId + static_cast<std::uint8_t>(c);
      LLAMA2CPP_CHECK(static_cast<std::size_t>(id) < vocabulary_.pieces.size(), "the character at byte ", offset,
                      " of the text is not in the vocabulary, and neither is its byte ", id - kFirstByteId,
                      " (it would be id ", id, " of ", vocabulary_.pieces.size(), ")");
      append_id(id, names, symbols);
    }
  }

  void append_id(std::int32_t id, std::string& names, std::vector<Symbol>& symbols) const {
    const std::string_view name = name_of(piece(id));
    LLAMA2CPP_CHECK(names.size() + name.size() <= kLongestText, "the text is too long to encode at once");
    Symbol symbol;
    symbol.begin = static_cast<std::uint32_t>(names.size());
    symbol.length = static_cast<std::uint32_t>(name.size());
    symbol.id = id;
    names.append(name);
    append_symbol(symbols, symbol);
  }

  const Vocabulary& vocabulary_;
  const Llama2cRules& rules_;
  const bool puts_space_;
  PieceTable pieces_;
  PieceTable merges_;
};

}  // namespace

std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const Llama2cRules& rules, bool puts_space) {
  return std::make_unique<Llama2cEncoder>(vocabulary, rules, puts_space);
}

}  // namespace llama2cpp
