// Encoder: one rule that turns text into ids. There is one for each kind of rules in core/vocabulary.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/vocabulary.h"

namespace llama2cpp {

class Encoder {
 public:
  virtual ~Encoder() = default;

  // Appends bos_id (unless it is -1) and the ids of the text, which may be any bytes.
  virtual void encode(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const = 0;

  // The same for a text between special pieces, where it is not the first.
  virtual void encode_later(std::string_view text, std::int32_t bos_id, std::vector<std::int32_t>& ids) const {
    encode(text, bos_id, ids);
  }

  // Where a text is normalised first (RankedBpeRules::normalizes, ByteBpeRules::nfc, UnigramRules), encode in two steps.
  // `first`: it is the beginning of a text, as in encode.
  virtual std::string normalized(std::string_view text) const { return std::string(text); }
  virtual void encode_normalized(std::string_view text, bool /*first*/, std::vector<std::int32_t>& ids) const {
    encode(text, -1, ids);
  }

  // The words that a normalised text is cut into before merging, where it is. Nothing for other encoders.
  virtual std::vector<std::string> words(std::string_view /*text*/) const { return {}; }
};

// The vocabulary, which the rules are part of, must outlive the encoder.
std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const Llama2cRules& rules,
                                            bool puts_space = true);
std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const SentencePieceRules& rules);
std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const ByteBpeRules& rules);
std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const RankedBpeRules& rules);
std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary, const UnigramRules& rules);

// A kind of rules without an encoder does not compile.
inline std::unique_ptr<const Encoder> make_encoder(const Vocabulary& vocabulary) {
  return std::visit([&](const auto& rules) { return make_encoder(vocabulary, rules); }, vocabulary.rules);
}

}  // namespace llama2cpp
