// What a tokenizer is made from, whichever file it came from. Plain data: readers fill it, text/tokenizer.h uses it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace llama2cpp {

enum class PieceType : std::uint8_t {
  normal,
  unknown,       // the piece that stands for text the vocabulary cannot spell
  control,       // <s>, </s>: never made from text unless asked for
  user_defined,  // sentencepiece: always matched as a whole
  unused,        // sentencepiece: a merge may pass through it, but it is never an id of a text
  byte,          // one raw byte, written <0x0A> in the file
};

struct Vocabulary {
  // How text becomes ids, and how `pieces` are spelled.
  // llama2c: llama2.c's merge rule; a space is a space.
  // sentencepiece: SentencePiece's BPE with the identity normaliser; a space is U+2581, as in its files.
  enum class Kind : std::uint8_t { llama2c, sentencepiece };

  Kind kind = Kind::llama2c;
  std::vector<std::string> pieces;             // [vocab_size] raw bytes
  std::vector<float> scores;                   // [vocab_size] higher merges first
  std::vector<PieceType> types;                // [vocab_size]
  std::int32_t bos_id = 1;                     // -1: none
  std::vector<std::int32_t> eos_ids = {2};     // the first is what encode adds; all of them end a text
  std::int32_t unk_id = 0;                     // -1: none
  std::string unk_surface = " \xE2\x81\x87 ";  // what the unknown piece is decoded to (U+2047 between spaces)

  // sentencepiece only; llama2c always adds the prefix and never removes spaces.
  bool add_dummy_prefix = true;  // a space is put before the text
  bool remove_extra_whitespaces = false;
};

}  // namespace llama2cpp
