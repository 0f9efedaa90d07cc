// What a tokenizer is made from, whichever file it came from. Plain data: readers fill it, text/tokenizer.h uses it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace llama2cpp {

enum class PieceType : std::uint8_t {
  normal,
  unknown,       // the piece that stands for text the vocabulary cannot spell
  control,       // <s>, </s>: never made from text unless asked for
  user_defined,  // always matched as a whole, before anything is merged
  unused,        // sentencepiece: a merge may pass through it, but it is never an id of a text
  byte,          // one raw byte, written <0x0A> in the file
};

struct Vocabulary {
  // How text becomes ids, and how `pieces` are spelled.
  // llama2c: llama2.c's merge rule; a space is a space.
  // sentencepiece: SentencePiece's BPE with the identity normaliser; a space is U+2581, as in its files.
  // byte_bpe: GPT-2's byte-level BPE. Normal pieces are raw bytes (not the printable stand-ins that files have for them).
  // ranked_bpe: BPE over characters as tokenizer.json files of Llama 2 and Mistral have it: sentencepiece's pieces, but
  // only `merges` join two, the earlier ones first.
  enum class Kind : std::uint8_t { llama2c, sentencepiece, byte_bpe, ranked_bpe };

  // ranked_bpe: whether a space is put before a text, and before each text between special pieces. where_none: if it does
  // not begin with one. first_where_none: the same, and only at the beginning.
  enum class Prefix : std::uint8_t { none, always, where_none, first_where_none };

  // byte_bpe: how a text is cut into words, each of which is encoded by itself.
  enum class PreTokenizer : std::uint8_t {
    gpt2,
    llama3,
    smollm,
    ggml_default,
    qwen2,
    seed_coder,
    tekken,
    deepseek_coder
  };
  static constexpr PreTokenizer kLastPreTokenizer = PreTokenizer::deepseek_coder;

  // byte_bpe, ranked_bpe: what a tokenizer.json says of a control or user-defined piece, where that is anything.
  struct AddedToken {
    std::int32_t id = 0;
    bool lstrip = false;      // with the white space before it
    bool rstrip = false;      // with the white space behind it
    bool normalized = false;  // looked for after the others, and with `normalizes` in the text as it then is

    bool operator==(const AddedToken&) const = default;
  };

  using Merge = std::array<std::int32_t, 3>;  // left id, right id, id of both joined

  Kind kind = Kind::llama2c;
  std::vector<std::string> pieces;             // [vocab_size]
  std::vector<float> scores;                   // [vocab_size] higher merges first
  std::vector<PieceType> types;                // [vocab_size]
  std::int32_t bos_id = 1;                     // -1: none
  std::vector<std::int32_t> eos_ids = {2};     // the first is what encode adds; all of them end a text
  std::int32_t unk_id = 0;                     // -1: none
  std::string unk_surface = " \xE2\x81\x87 ";  // what the unknown piece is decoded to (U+2047 between spaces)

  // sentencepiece only; llama2c always adds the prefix and never removes spaces.
  bool add_dummy_prefix = true;  // a space is put before the text
  bool remove_extra_whitespaces = false;

  Prefix prefix = Prefix::none;  // ranked_bpe only; add_dummy_prefix then says whether it is one of the others
  // ranked_bpe: the prefix and U+2581 are put in before normalised tokens are looked for, not behind them.
  bool normalizes = false;
  std::vector<AddedToken> added;

  // byte_bpe; the merges are ranked_bpe's too.
  PreTokenizer pre_tokenizer = PreTokenizer::gpt2;
  std::vector<Merge> merges;   // the earlier ones first
  bool merges_by_id = false;   // instead: any two neighbours that spell a normal piece, the lower id first (tiktoken)
  bool ignore_merges = false;  // a word that is a normal piece is that piece, whatever the merges say

  // What the file wants of a text that is a whole prompt.
  bool add_bos = true;
  bool add_eos = false;
  std::string chat_template;  // jinja2; empty: none

  std::vector<std::string> warnings;  // what the file says that could not be used; not a part of the tokenizer's state
};

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
std::vector<Vocabulary::Merge> resolve_merges(std::span<const std::string> pieces, std::span<const PieceType> types,
                                              std::span<const std::string_view> merges);

}  // namespace llama2cpp
