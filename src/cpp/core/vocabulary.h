// What a tokenizer is made from, whichever file it came from. Plain data: readers fill it, text/tokenizer.h uses it.
//
// A new setting is a member of Vocabulary, or of the rules of its kind, and a line in the `fields` below it. to_dict and
// from_dict, pickles, files of panels and equality go through that list.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "core/enum_names.h"
#include "core/fields.h"
#include "core/splits.h"

namespace llama2cpp {

enum class PieceType : std::uint8_t {
  normal,
  unknown,       // the piece that stands for text the vocabulary cannot spell
  control,       // <s>, </s>: never made from text unless asked for
  user_defined,  // always matched as a whole, before anything is merged
  unused,        // sentencepiece: a merge may pass through it, but it is never an id of a text
  byte,          // one raw byte, written <0x0A> in the file
};
template <>
inline constexpr std::array<std::string_view, 6> kEnumNames<PieceType> = {"normal",       "unknown", "control",
                                                                          "user_defined", "unused",  "byte"};

// Whether BPE by rank puts a space before a text, and before each text between special pieces. where_none: if it does not
// begin with one. first_where_none: the same, and only at the beginning.
enum class SpacePrefix : std::uint8_t { none, always, where_none, first_where_none };
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<SpacePrefix> = {"none", "always", "where_none",
                                                                            "first_where_none"};

using Merge = std::array<std::int32_t, 3>;  // left id, right id, id of both joined

// What a tokenizer.json says of a control or user-defined piece, where that is anything.
struct AddedToken {
  std::int32_t id = 0;
  bool lstrip = false;      // with the white space before it
  bool rstrip = false;      // with the white space behind it
  bool normalized = false;  // looked for after the others, and with `normalizes` in the text as it then is

  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("id", &AddedToken::id);
    visit("lstrip", &AddedToken::lstrip);
    visit("rstrip", &AddedToken::rstrip);
    visit("normalized", &AddedToken::normalized);
  }
  bool operator==(const AddedToken& other) const { return same_fields(*this, other); }
};
static_assert(all_listed<AddedToken>());

// The kinds of tokenizers: how text becomes ids, and how Vocabulary::pieces are spelled.

// llama2.c's merge rule. A space is a space; one is put before every text.
struct Llama2cRules {
  std::vector<float> scores;  // [vocab_size] higher merges first

  static constexpr std::string_view kName = "llama2.c";
  static constexpr std::string_view kTitle = "llama2.c";
  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("scores", &Llama2cRules::scores);
  }
};
static_assert(all_listed<Llama2cRules>());

// SentencePiece's BPE and its Unigram model. A space is U+2581, as in its files.
struct SentencePieceRules {
  std::vector<float> scores;  // [vocab_size] BPE: higher merges first; Unigram: the largest sum counts
  bool unigram = false;
  std::string charsmap;          // text/charsmap.h: what the text is changed to first; empty: nothing
  bool add_space_prefix = true;  // a space is put before the text (add_dummy_prefix in its files)
  bool remove_extra_whitespaces = false;

  static constexpr std::string_view kName = "sentencepiece";
  static constexpr std::string_view kTitle = "SentencePiece";
  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("scores", &SentencePieceRules::scores);
    visit("unigram", &SentencePieceRules::unigram);
    visit("charsmap", &SentencePieceRules::charsmap);
    visit("add_space_prefix", &SentencePieceRules::add_space_prefix);
    visit("remove_extra_whitespaces", &SentencePieceRules::remove_extra_whitespaces);
  }
};
static_assert(all_listed<SentencePieceRules>());

// GPT-2's byte-level BPE. Normal pieces are raw bytes (not the printable stand-ins that files have for them).
struct ByteBpeRules {
  bool nfc = false;  // a text is composed first (Unicode's form NFC)
  PreTokenizer pre_tokenizer = PreTokenizer::gpt2;
  std::vector<Split> splits;   // with PreTokenizer::splits; else none
  std::vector<Merge> merges;   // the earlier ones first
  bool merges_by_id = false;   // instead: any two neighbours that spell a normal piece, the lower id first (tiktoken)
  bool ignore_merges = false;  // a word that is a normal piece is that piece, whatever the merges say
  std::vector<AddedToken> added;

  static constexpr std::string_view kName = "byte_bpe";
  static constexpr std::string_view kTitle = "byte-level BPE";
  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("nfc", &ByteBpeRules::nfc);
    visit("pre_tokenizer", &ByteBpeRules::pre_tokenizer);
    visit("splits", &ByteBpeRules::splits);
    visit("merges", &ByteBpeRules::merges);
    visit("merges_by_id", &ByteBpeRules::merges_by_id);
    visit("ignore_merges", &ByteBpeRules::ignore_merges);
    visit("added", &ByteBpeRules::added);
  }
};
static_assert(all_listed<ByteBpeRules>());

// BPE over characters as tokenizer.json files of Llama 2 and Mistral have it: SentencePiece's pieces, but only `merges` join
// two, the earlier ones first.
struct RankedBpeRules {
  SpacePrefix prefix = SpacePrefix::none;
  bool normalizes = false;  // the prefix and U+2581 are put in before normalised tokens are looked for, not behind them
  std::vector<Merge> merges;
  std::vector<AddedToken> added;

  static constexpr std::string_view kName = "ranked_bpe";
  static constexpr std::string_view kTitle = "BPE by rank";
  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("prefix", &RankedBpeRules::prefix);
    visit("normalizes", &RankedBpeRules::normalizes);
    visit("merges", &RankedBpeRules::merges);
    visit("added", &RankedBpeRules::added);
  }
};
static_assert(all_listed<RankedBpeRules>());

// One step of normalising a text. replace: what the pattern finds; prepend: before a text that is not empty.
enum class TextStepKind : std::uint8_t { charsmap, nfc, replace, prepend, strip_left, strip_right };
template <>
inline constexpr std::array<std::string_view, 6> kEnumNames<TextStepKind> = {"charsmap", "nfc",        "replace",
                                                                             "prepend",  "strip_left", "strip_right"};

struct TextStep {
  TextStepKind kind = TextStepKind::charsmap;
  std::string pattern;  // replace: a regular expression (text/pattern_syntax.h) that does not match an empty text
  std::string content;  // replace, prepend

  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("kind", &TextStep::kind);
    visit("pattern", &TextStep::pattern);
    visit("content", &TextStep::content);
  }
  bool operator==(const TextStep& other) const { return same_fields(*this, other); }
};
static_assert(all_listed<TextStep>());

// Unigram models as tokenizer.json files have them. A space is U+2581.
struct UnigramRules {
  std::vector<double> log_probs;  // [vocab_size] the largest sum counts; infinity: the piece is not the model's
  std::string charsmap;           // text/charsmap.h, for steps of that kind
  std::vector<TextStep> steps;    // how a text is normalised
  bool cuts_white_space = false;  // into words, without the white space between them
  SpacePrefix prefix = SpacePrefix::none;  // of each such word; never `always`
  bool cuts_spaces = false;                // a word ends before each U+2581
  std::vector<AddedToken> added;

  static constexpr std::string_view kName = "unigram";
  static constexpr std::string_view kTitle = "Unigram";
  template <class Visit>
  static constexpr void fields(Visit visit) {
    visit("log_probs", &UnigramRules::log_probs);
    visit("charsmap", &UnigramRules::charsmap);
    visit("steps", &UnigramRules::steps);
    visit("cuts_white_space", &UnigramRules::cuts_white_space);
    visit("prefix", &UnigramRules::prefix);
    visit("cuts_spaces", &UnigramRules::cuts_spaces);
    visit("added", &UnigramRules::added);
  }
};
static_assert(all_listed<UnigramRules>());

struct Vocabulary {
  std::vector<std::string> pieces;             // [vocab_size]
  std::vector<PieceType> types;                // [vocab_size]
  std::int32_t bos_id = 1;                     // -1: none
  std::vector<std::int32_t> eos_ids = {2};     // the first is what encode adds; all of them end a text
  std::int32_t unk_id = 0;                     // -1: none
  std::string unk_surface = " \xE2\x81\x87 ";  // what the unknown piece is decoded to (U+2047 between spaces)

  // What the file wants of a text that is a whole prompt.
  bool add_bos = true;
  bool add_eos = false;
  std::string chat_template;  // jinja2; empty: none
  // Templates for other uses, such as "tool_use": their names, in ascending order, and their texts.
  std::vector<std::string> template_names;
  std::vector<std::string> template_texts;

  std::variant<Llama2cRules, SentencePieceRules, ByteBpeRules, RankedBpeRules, UnigramRules> rules;

  std::vector<std::string> warnings;  // what the file says that could not be used; not a part of the tokenizer's state

  template <class Visit>
  static constexpr void fields(Visit visit) {  // those of the rules are theirs
    visit("pieces", &Vocabulary::pieces);
    visit("types", &Vocabulary::types);
    visit("bos_id", &Vocabulary::bos_id);
    visit("eos_ids", &Vocabulary::eos_ids);
    visit("unk_id", &Vocabulary::unk_id);
    visit("unk_surface", &Vocabulary::unk_surface);
    visit("add_bos", &Vocabulary::add_bos);
    visit("add_eos", &Vocabulary::add_eos);
    visit("chat_template", &Vocabulary::chat_template);
    visit("template_names", &Vocabulary::template_names);
    visit("template_texts", &Vocabulary::template_texts);
  }

  template <class Rules>
  bool is() const {
    return std::holds_alternative<Rules>(rules);
  }

  // The same settings, of the same kind.
  bool operator==(const Vocabulary& other) const;
};
static_assert(all_listed<Vocabulary>(2));  // all but rules and warnings

// Calls visit(name, member) for every setting of a vocabulary, const or not, but its kind.
template <class AnyVocabulary, class Visit>
void visit_settings(AnyVocabulary& vocabulary, Visit&& visit) {
  visit_fields(vocabulary, visit);
  std::visit([&](auto& rules) { visit_fields(rules, visit); }, vocabulary.rules);
}

// "byte_bpe", as dicts and files call it; and "byte-level BPE", for people.
std::string_view kind_name(const Vocabulary& vocabulary);
std::string_view kind_title(const Vocabulary& vocabulary);

// One without pieces of each kind, in the order of the variant.
std::vector<Vocabulary> all_kinds();

// The same of one kind; nothing for a name that is none.
std::optional<Vocabulary> vocabulary_of_kind(std::string_view name);

// "llama2.c, sentencepiece, ...", for messages.
std::string list_kinds();

// What several kinds have; null for the others.
template <class T, class AnyVocabulary, class Get>
auto find_in_rules(AnyVocabulary& vocabulary, Get get) {
  using Pointer = std::conditional_t<std::is_const_v<AnyVocabulary>, const T*, T*>;
  return std::visit(
      [&](auto& rules) -> Pointer {
        if constexpr (std::is_invocable_v<Get, decltype(rules)>) {
          return &get(rules);
        } else {
          return nullptr;
        }
      },
      vocabulary.rules);
}
template <class AnyVocabulary>
auto find_scores(AnyVocabulary& vocabulary) {
  return find_in_rules<std::vector<float>>(vocabulary,
                                           [](auto& rules) -> decltype((rules.scores)) { return rules.scores; });
}
template <class AnyVocabulary>
auto find_merges(AnyVocabulary& vocabulary) {
  return find_in_rules<std::vector<Merge>>(vocabulary,
                                           [](auto& rules) -> decltype((rules.merges)) { return rules.merges; });
}
template <class AnyVocabulary>
auto find_added(AnyVocabulary& vocabulary) {
  return find_in_rules<std::vector<AddedToken>>(vocabulary,
                                                [](auto& rules) -> decltype((rules.added)) { return rules.added; });
}

// Throws FormatError for a vocabulary that cannot work: no pieces, sizes that disagree, ids out of range, merges that do
// not join.
void check_vocabulary(const Vocabulary& vocabulary);

// How SentencePiece's files, and what is made from them, write a space: U+2581.
inline constexpr std::string_view kEscapedSpace = "\xE2\x96\x81";

// Gives a vocabulary as many pieces as the model has rows: missing ones become holes, pieces beyond are left out. False,
// and nothing done, where a text could become one of those, and for more than a million holes.
bool fit_pieces(Vocabulary& vocabulary, std::int64_t vocab_size);

// The value of a hexadecimal digit, or -1.
int hex_digit(char c);

// The byte that a piece spelled <0x0A> stands for, or -1.
int byte_of_piece(std::string_view piece);

// The type that SentencePiece's files, and GGUF's, mean by a number; nothing for a number that means none.
std::optional<PieceType> piece_type_of(std::uint64_t number);

// A piece in a message: files may hold any bytes, messages are text.
std::string quoted_piece(std::string_view piece);

// byte_bpe's merges from how files spell them: "left right" in the stand-ins of core/byte_alphabet.h, with one space
// between. `pieces` and `types` are the vocabulary's; of equal pieces a normal one counts, and then the first. Linear in
// the length of both. Throws FormatError for a merge that is spelled otherwise, or of which a part or the joined piece is
// not in the vocabulary.
std::vector<Merge> resolve_merges(std::span<const std::string> pieces, std::span<const PieceType> types,
                                  std::span<const std::string_view> merges);

}  // namespace llama2cpp
