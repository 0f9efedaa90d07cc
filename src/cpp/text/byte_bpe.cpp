// GPT-2's byte-level BPE: the text is cut into words, each word starts as its bytes, and the pair with the lowest rank
// merges until none can. The ids are those of `tokenizers`, or of tiktoken for a vocabulary that merges by id.
#include <algorithm>
#include <array>
#include <limits>
#include <string>

#include "core/check.h"
#include "text/bpe_merge.h"
#include "text/encoder.h"
#include "text/merge_table.h"
#include "text/nfc.h"
#include "text/pre_tokenizer.h"
#include "text/special_pieces.h"
#include "text/word_cache.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kShortWord = 48;  // bytes; up to here looking at all pairs again is faster than a heap
constexpr std::uint32_t kNever = std::numeric_limits<std::uint32_t>::max();

class ByteBpeEncoder final : public Encoder {
 public:
  ByteBpeEncoder(const Vocabulary& vocabulary, const ByteBpeRules& rules)
      : vocabulary_(vocabulary),
        rules_(rules),
        cutter_(rules),
        pieces_(vocabulary.pieces.size()),
        merges_(rules.merges),
        special_(vocabulary, rules.merges) {
    byte_ids_.fill(-1);
    const auto count = static_cast<std::int32_t>(vocabulary.pieces.size());
    const auto note_byte = [&](int byte, std::int32_t id) {
      std::int32_t& of_byte = byte_ids_[static_cast<std::size_t>(byte)];
      if (of_byte < 0) of_byte = id;
    };
    // Of equal pieces a normal one counts.
    for (std::int32_t id = 0; id < count; ++id) {
      if (!normal(id)) continue;
      const std::string& piece = vocabulary.pieces[static_cast<std::size_t>(id)];
      pieces_.insert(piece, id);
      if (piece.size() == 1) note_byte(static_cast<std::uint8_t>(piece[0]), id);
    }
    // The others are there because merges may make them.
    for (std::int32_t id = 0; id < count; ++id) {
      if (normal(id)) continue;
      const std::string& piece = vocabulary.pieces[static_cast<std::size_t>(id)];
      if (vocabulary.types[static_cast<std::size_t>(id)] == PieceType::byte) {
        note_byte(byte_of_piece(piece), id);
      } else {
        pieces_.insert(piece, id);
      }
    }
    // A byte that has no piece but a control one is that on the way to a longer piece, and nothing if it remains.
    for (std::int32_t id = 0; id < count; ++id) {
      const std::string& piece = vocabulary.pieces[static_cast<std::size_t>(id)];
      if (control(id) && piece.size() == 1) note_byte(static_cast<std::uint8_t>(piece[0]), id);
    }
  }

  void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const override {
    LLAMA2CPP_CHECK(text.size() <= kLongestText, "the text is too long to encode at once: ", text.size(), " bytes");
    if (bos_id >= 0) ids.push_back(bos_id);
    if (rules_.nfc) {
      encode_normalized(nfc(text), true, ids);
    } else {
      encode_normalized(text, true, ids);
    }
  }

  std::string normalized(std::string_view text) const override { return rules_.nfc ? nfc(text) : std::string(text); }

  void encode_normalized(std::string_view text, bool /*first*/, std::vector<std::int32_t>& ids) const override {
    WordCache cache(text, ids.size());
    std::vector<Symbol> symbols;
    cutter_.cut(text, [&](std::string_view word) {
      if (word.size() == 1) {
        if (byte_id(word[0]) >= 0) append(byte_id(word[0]), ids);
        return;
      }
      const std::uint64_t hash = PieceTable::hash_of(word);
      if (cache.copy(word, hash, ids)) return;
      const std::size_t before = ids.size();
      encode_word(word, hash, symbols, ids);
      cache.note(word, hash, ids.size() - before, ids.size());
    });
  }

  std::vector<std::string> words(std::string_view text) const override {
    std::vector<std::string> words;
    cutter_.cut(rules_.nfc ? nfc(text) : std::string(text), [&](std::string_view word) { words.emplace_back(word); });
    return words;
  }

 private:
  struct Part {
    std::uint32_t begin;  // in the word
    std::int32_t id;
    std::uint32_t rank;      // of merging it with the part to its right, kNever: it does not merge
    std::int32_t joined_id;  // what they become
  };

  bool normal(std::int32_t id) const { return vocabulary_.types[static_cast<std::size_t>(id)] == PieceType::normal; }
  bool control(std::int32_t id) const { return vocabulary_.types[static_cast<std::size_t>(id)] == PieceType::control; }
  std::int32_t byte_id(char byte) const { return byte_ids_[static_cast<std::uint8_t>(byte)]; }

  void encode_word(std::string_view word, std::uint64_t hash, std::vector<Symbol>& symbols,
                   std::vector<std::int32_t>& ids) const {
    if (rules_.ignore_merges) {
      if (const std::int32_t id = pieces_.find(word, hash); id >= 0 && normal(id)) return ids.push_back(id);
    }
    const auto unknown = [&](char c) { return byte_id(c) < 0; };
    if (std::none_of(word.begin(), word.end(), unknown)) return merge_bytes(word, symbols, ids);
    // As in `tokenizers`: a byte that is no piece is left out, and its neighbours may merge. SmolLM2 lacks some.
    std::string spelled(word);
    std::erase_if(spelled, unknown);
    if (!spelled.empty()) merge_bytes(spelled, symbols, ids);
  }

  void merge_bytes(std::string_view word, std::vector<Symbol>& symbols, std::vector<std::int32_t>& ids) const {
    if (word.size() <= kShortWord) {
      merge_short(word, ids);
    } else {
      merge_long(word, symbols, ids);
    }
  }

  // What two neighbours become; `joined` is the bytes of both.
  MergeTable::Entry merge(std::int32_t left, std::int32_t right, std::string_view joined) const {
    if (!rules_.merges_by_id) return merges_.find(left, right);
    const std::int32_t id = pieces_.find(joined);
    if (id < 0 || !normal(id)) return {};
    return {0, static_cast<std::uint32_t>(id), id};
  }

  void merge_short(std::string_view word, std::vector<std::int32_t>& ids) const {
    std::array<Part, kShortWord + 1> parts;
    std::size_t count = word.size();
    for (std::size_t i = 0; i < count; ++i) parts[i] = {static_cast<std::uint32_t>(i), byte_id(word[i]), kNever, -1};
    parts[count] = {static_cast<std::uint32_t>(count), -1, kNever, -1};
    const auto look = [&](std::size_t i) {
      Part& left = parts[i];
      left.rank = kNever;
      if (i + 1 >= count) return;
      const auto found = merge(left.id, parts[i + 1].id, word.substr(left.begin, parts[i + 2].begin - left.begin));
      if (found.id < 0) return;
      left.rank = found.rank;
      left.joined_id = found.id;
    };
    for (std::size_t i = 0; i + 1 < count; ++i) look(i);

    while (true) {
      std::size_t best = 0;
      for (std::size_t i = 1; i < count; ++i) {
        if (parts[i].rank < parts[best].rank) best = i;
      }
      if (parts[best].rank == kNever) break;
      parts[best].id = parts[best].joined_id;
      std::copy(parts.begin() + static_cast<std::ptrdiff_t>(best + 2),
                parts.begin() + static_cast<std::ptrdiff_t>(count + 1),
                parts.begin() + static_cast<std::ptrdiff_t>(best + 1));
      --count;
      look(best);
      if (best > 0) look(best - 1);
    }
    for (std::size_t i = 0; i < count; ++i) append(parts[i].id, ids);
  }

  void merge_long(std::string_view word, std::vector<Symbol>& symbols, std::vector<std::int32_t>& ids) const {
    symbols.clear();
    symbols.reserve(word.size());
    for (std::size_t i = 0; i < word.size(); ++i) {
      Symbol symbol;
      symbol.begin = static_cast<std::uint32_t>(i);
      symbol.length = 1;
      symbol.id = byte_id(word[i]);
      append_symbol(symbols, symbol);
    }
    merge_symbols(word, symbols, pieces_, [&](const Symbol& left, const Symbol& right) -> Joined {
      const MergeTable::Entry found = merge(left.id, right.id, left.with(right, word));
      return {-static_cast<double>(found.rank), found.id};
    });
    for (std::int32_t i = 0; i >= 0; i = symbols[static_cast<std::size_t>(i)].next) {
      append(symbols[static_cast<std::size_t>(i)].id, ids);
    }
  }

  void append(std::int32_t id, std::vector<std::int32_t>& ids) const {
    if (!control(id)) return ids.push_back(id);
    const std::string& piece = vocabulary_.pieces[static_cast<std::size_t>(id)];
    special_.take_apart(id, piece, [&](std::int32_t part, std::string_view) {
      if (part >= 0) ids.push_back(part);
    });
  }

  const Vocabulary& vocabulary_;
  const ByteBpeRules& rules_;
  WordCutter cutter_;
  PieceTable pieces_;
  MergeTable merges_;
  SpecialPieces special_;
  std::array<std::int32_t, 256> byte_ids_;  // -1: none
};

}  // namespace

std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const ByteBpeRules& rules) {
  return std::make_unique<ByteBpeEncoder>(vocabulary, rules);
}

}  // namespace llama2cpp
