// Tokenizer: text <-> ids. Knows no model and no session; immutable, so any number of threads may share one, and copies
// share the vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/vocabulary.h"

namespace llama2cpp {

class Tokenizer {
 public:
  // Throws FormatError for a vocabulary that cannot work (no pieces, sizes that disagree, ids out of range).
  explicit Tokenizer(Vocabulary vocabulary);

  // Copied where others are moved: a moved-from tokenizer still works.
  Tokenizer(const Tokenizer&) = default;
  Tokenizer& operator=(const Tokenizer&) = default;

  // Text is raw bytes and need not be valid UTF-8. `bos` puts BOS before it if the vocabulary wants that (add_bos); `eos`
  // puts EOS behind it, where the vocabulary has one. With `special`, control and user-defined pieces found in the text
  // become their ids, the longest first, and each text between them is encoded as if it stood alone; a text that begins
  // with BOS gets no second one. Without `prefix_space`, no space is put before a text or a part of it. Throws std::invalid_argument for text that the vocabulary has no id for, not even for
  // its bytes.
  std::vector<std::int32_t> encode(std::string_view text, bool bos, bool eos, bool special = false,
                                   bool prefix_space = true) const;

  // The bytes of a whole sequence: control pieces are nothing, byte pieces their byte, the dummy prefix is taken off.
  std::string decode(std::span<const std::int32_t> ids) const;

  // The bytes that one id stands for on its own (a byte piece is its one byte, a control piece its name).
  std::string piece(std::int32_t id) const;

  // The bytes that an id adds to a text which has begun; nothing for those that spell none: control pieces, the unknown
  // piece, and unused ones, which no text becomes.
  std::optional<std::string> text_within(std::int32_t id) const;

  // What llama2.c's decode(prev, id) prints, which for byte-level BPE is the piece. For the others: the name of the piece up to its first NUL, without one leading space after
  // BOS; and if that begins as scanf's "<0x%02hhX>" would read it, the byte, which is nothing for byte 0. (The closing
  // ">" is not needed for that: "<0xfoo" is byte 15, and so is "<0x f>".)
  std::string piece_after(std::int32_t prev, std::int32_t id) const;

  // Byte-level BPE: the words that a text without special pieces is cut into before merging, composed if it is so first. Throws
  // std::invalid_argument for other kinds of vocabularies, which have no such step.
  std::vector<std::string> words(std::string_view text) const;

  std::int64_t vocab_size() const;
  const Vocabulary& vocabulary() const;

 private:
  friend class StreamDecoder;
  struct Impl;

  // Decodes id by id. `strips_space`: no text yet, so a leading space is the dummy prefix and is left out.
  void append_text(std::int32_t id, bool& strips_space, std::string& out) const;
  bool strips_first_space() const;
  std::size_t checked_index(std::int32_t id) const;

  std::shared_ptr<const Impl> impl_;
};

}  // namespace llama2cpp
