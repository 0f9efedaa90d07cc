#include "text/tokenizer.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>
#include <variant>

#include "core/check.h"
#include "text/added_tokens.h"
#include "text/encoder.h"
#include "text/prefix_matcher.h"

namespace llama2cpp {
namespace {

// The byte that scanf's "<0x%02hhX>" finds at the start of `text`, or -1. White space may come before the number, a
// sign is one of its two characters, and nothing is asked of what follows it.
int scanned_byte(std::string_view text) {
  if (!text.starts_with("<0x")) return -1;
  text.remove_prefix(3);
  text.remove_prefix(std::min(text.find_first_not_of(" \t\n\v\f\r"), text.size()));
  std::string_view number = text.substr(0, 2);
  const bool negative = number.starts_with('-');
  if (negative || number.starts_with('+')) number.remove_prefix(1);
  if (number.empty() || hex_digit(number[0]) < 0) return -1;
  int value = hex_digit(number[0]);
  if (number.size() == 2 && hex_digit(number[1]) >= 0) value = 16 * value + hex_digit(number[1]);
  return negative ? (256 - value) % 256 : value;
}

std::string with_plain_spaces(std::string_view piece) {
  std::string out;
  while (!piece.empty()) {
    const bool space = piece.starts_with(kEscapedSpace);
    out.push_back(space ? ' ' : piece[0]);
    piece.remove_prefix(space ? kEscapedSpace.size() : 1);
  }
  return out;
}

bool escapes_spaces(const Vocabulary& vocabulary) {
  return !vocabulary.is<Llama2cRules>() && !vocabulary.is<ByteBpeRules>();
}

// The space before a text, which decoding takes off again.
bool puts_space(const Llama2cRules& /*rules*/) { return true; }
bool puts_space(const SentencePieceRules& rules) { return rules.add_space_prefix || rules.remove_extra_whitespaces; }
bool puts_space(const ByteBpeRules& /*rules*/) { return false; }
bool puts_space(const RankedBpeRules& rules) { return rules.prefix != SpacePrefix::none; }
bool prepends_space(const TextStep& step) {
  return step.kind == TextStepKind::prepend && step.content == kEscapedSpace;
}
bool puts_space(const UnigramRules& rules) {
  return rules.prefix != SpacePrefix::none || std::any_of(rules.steps.begin(), rules.steps.end(), prepends_space);
}

// The same rules without that space. Those of llama2.c have no such setting: their encoder is made without it.
void leave_out_space(Llama2cRules& /*rules*/) {}
void leave_out_space(SentencePieceRules& rules) { rules.add_space_prefix = false; }
void leave_out_space(ByteBpeRules& /*rules*/) {}
void leave_out_space(RankedBpeRules& rules) { rules.prefix = SpacePrefix::none; }
void leave_out_space(UnigramRules& rules) {
  rules.prefix = SpacePrefix::none;
  std::erase_if(rules.steps, prepends_space);
}

Vocabulary without_space(Vocabulary vocabulary) {
  std::visit([](auto& rules) { leave_out_space(rules); }, vocabulary.rules);
  return vocabulary;
}

std::unique_ptr<const Encoder> encoder_of(const Vocabulary& vocabulary, bool puts_space) {
  const auto* const rules = std::get_if<Llama2cRules>(&vocabulary.rules);
  return rules == nullptr ? make_encoder(vocabulary) : make_encoder(vocabulary, *rules, puts_space);
}

// Whether a text is changed before normalised tokens are looked for in it.
bool normalizes_first(const Llama2cRules& /*rules*/) { return false; }
bool normalizes_first(const SentencePieceRules& /*rules*/) { return false; }
bool normalizes_first(const ByteBpeRules& rules) { return rules.nfc; }
bool normalizes_first(const RankedBpeRules& rules) { return rules.normalizes; }
bool normalizes_first(const UnigramRules& rules) { return !rules.steps.empty(); }

// The pieces that are looked for in the text itself. User-defined ones of a sentencepiece vocabulary are left to its
// encoder, which finds them too.
PrefixMatcher make_specials(const Vocabulary& vocabulary) {
  std::vector<std::pair<std::string, std::int32_t>> specials;
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const bool control = vocabulary.types[i] == PieceType::control;
    const bool user_defined = vocabulary.types[i] == PieceType::user_defined && !vocabulary.is<SentencePieceRules>();
    if (!control && !user_defined) continue;
    const std::string& piece = vocabulary.pieces[i];
    const auto id = static_cast<std::int32_t>(i);
    specials.emplace_back(piece, id);
    // llama2.c's files have "\n<s>\n" for <s>.
    if (vocabulary.is<Llama2cRules>() && piece.size() > 2 && piece.starts_with('\n') && piece.ends_with('\n')) {
      specials.emplace_back(piece.substr(1, piece.size() - 2), id);
    }
  }
  return PrefixMatcher(std::move(specials));
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(Vocabulary from, bool puts_space = true)
      : vocabulary(std::move(from)),
        encoder(encoder_of(vocabulary, puts_space)),
        specials(make_specials(vocabulary)),
        normalizes(std::visit([](const auto& rules) { return normalizes_first(rules); }, vocabulary.rules)) {
    const std::vector<AddedToken>* const added = find_added(vocabulary);
    if (added == nullptr) return;
    raw_tokens.emplace(vocabulary, *added, false, [](const std::string& piece) { return piece; });
    normalized_tokens.emplace(vocabulary, *added, true, [&](const std::string& piece) {
      return normalizes ? encoder->normalized(piece) : piece;
    });
  }

  // With added tokens: first those that are looked for in the text as it is, then in each part the others.
  void encode_parts(std::string_view text, bool special, std::vector<std::int32_t>& ids) const {
    const auto encode = [&](std::string_view part) {
      if (part.data() == text.data()) {
        encoder->encode(part, -1, ids);
      } else {
        encoder->encode_later(part, -1, ids);
      }
    };
    raw_tokens->cut(text, special, [&](std::string_view part, std::int32_t token) {
      if (token >= 0) return ids.push_back(token);
      if (normalized_tokens->empty()) return encode(part);
      const std::string normalized = normalizes ? encoder->normalized(part) : std::string();
      normalized_tokens->cut(normalizes ? normalized : part, special,
                             [&](std::string_view inner, std::int32_t inner_token) {
                               if (inner_token >= 0) return ids.push_back(inner_token);
                               if (!normalizes) return encode(inner);
                               const bool first = part.data() == text.data() && inner.data() == normalized.data();
                               encoder->encode_normalized(inner, first, ids);
                             });
    });
  }

  // What encodes texts without the space before them, made when it is asked for.
  const Impl& spaceless() const {
    std::call_once(made_spaceless_, [this] { spaceless_ = std::make_unique<Impl>(without_space(vocabulary), false); });
    return *spaceless_;
  }

  const Vocabulary vocabulary;
  const std::unique_ptr<const Encoder> encoder;
  const PrefixMatcher specials;
  const bool normalizes;
  // Where the rules have added tokens: they are found as in `tokenizers`.
  std::optional<AddedTokens> raw_tokens, normalized_tokens;

 private:
  mutable std::once_flag made_spaceless_;
  mutable std::unique_ptr<const Impl> spaceless_;
};

Tokenizer::Tokenizer(Vocabulary vocabulary) {
  check_vocabulary(vocabulary);
  impl_ = std::make_shared<const Impl>(std::move(vocabulary));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool bos, bool eos, bool special,
                                            bool prefix_space) const {
  const Impl& impl = prefix_space ? *impl_ : impl_->spaceless();
  const Vocabulary& vocabulary = impl.vocabulary;
  const Encoder& encoder = *impl.encoder;
  const PrefixMatcher& found = impl.specials;
  std::vector<std::int32_t> ids;
  std::int32_t bos_id = bos && vocabulary.add_bos ? vocabulary.bos_id : -1;
  if (bos_id >= 0 && special && found.longest_prefix(text).id == bos_id) bos_id = -1;  // the text has it

  if (impl.raw_tokens) {
    if (bos_id >= 0) ids.push_back(bos_id);
    impl.encode_parts(text, special, ids);
    if (eos && !vocabulary.eos_ids.empty()) ids.push_back(vocabulary.eos_ids[0]);
    return ids;
  }
  std::size_t begin = 0;  // of the text that is not encoded yet
  for (std::size_t at = 0; special && !found.empty() && at < text.size();) {
    const auto match = found.longest_prefix(text.substr(at));
    if (match.id < 0) {
      ++at;
      continue;
    }
    const std::string_view before = text.substr(begin, at - begin);
    if (begin == 0) {
      encoder.encode(before, std::exchange(bos_id, -1), ids);
    } else {
      encoder.encode_later(before, -1, ids);
    }
    ids.push_back(match.id);
    at += match.length;
    begin = at;
  }
  if (begin == 0) {
    encoder.encode(text, bos_id, ids);
  } else {
    encoder.encode_later(text.substr(begin), -1, ids);
  }
  if (eos && !vocabulary.eos_ids.empty()) ids.push_back(vocabulary.eos_ids[0]);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string out;
  bool strips_space = strips_first_space();
  for (const std::int32_t id : ids) append_text(id, strips_space, out);
  return out;
}

std::string Tokenizer::piece(std::int32_t id) const {
  const std::size_t index = checked_index(id);
  const std::string& piece = impl_->vocabulary.pieces[index];
  if (impl_->vocabulary.types[index] == PieceType::byte) return {static_cast<char>(byte_of_piece(piece))};
  return escapes_spaces(impl_->vocabulary) ? with_plain_spaces(piece) : piece;
}

std::optional<std::string> Tokenizer::text_within(std::int32_t id) const {
  const PieceType type = impl_->vocabulary.types[checked_index(id)];
  const bool spells = type == PieceType::normal || type == PieceType::byte || type == PieceType::user_defined;
  return spells ? std::optional(piece(id)) : std::nullopt;
}

std::string Tokenizer::piece_after(std::int32_t prev, std::int32_t id) const {
  const std::size_t index = checked_index(id);
  if (impl_->vocabulary.is<ByteBpeRules>()) return piece(id);
  // The name of a byte piece is wanted here, not its byte: without this, byte 0 would be cut by the next line.
  std::string name = impl_->vocabulary.types[index] == PieceType::byte ? impl_->vocabulary.pieces[index] : piece(id);
  name.resize(std::min(name.find('\0'), name.size()));
  if (prev >= 0 && prev == impl_->vocabulary.bos_id && name.starts_with(' ')) name.erase(0, 1);
  const int byte = scanned_byte(name);
  if (byte == 0) return {};
  if (byte > 0) return {static_cast<char>(byte)};
  return name;
}

void Tokenizer::append_text(std::int32_t id, bool& strips_space, std::string& out) const {
  const Vocabulary& vocabulary = impl_->vocabulary;
  const std::size_t index = checked_index(id);
  const PieceType type = vocabulary.types[index];
  if (type == PieceType::control) return;
  std::string text = type == PieceType::unknown ? vocabulary.unk_surface : piece(id);

  // Only a space that the piece itself begins with can be the dummy prefix.
  const bool escaped = escapes_spaces(vocabulary);
  const bool spells_its_text = type != PieceType::unknown && type != PieceType::byte;
  if (strips_space && spells_its_text && vocabulary.pieces[index].starts_with(escaped ? kEscapedSpace : " ")) {
    text.erase(0, 1);
    // Where extra spaces are removed, every piece before the first text loses one.
    const auto* const rules = std::get_if<SentencePieceRules>(&vocabulary.rules);
    strips_space = rules != nullptr && rules->remove_extra_whitespaces;
  }
  if (!text.empty()) strips_space = false;
  out.append(text);
}

bool Tokenizer::strips_first_space() const {
  return std::visit([](const auto& rules) { return puts_space(rules); }, impl_->vocabulary.rules);
}

std::size_t Tokenizer::checked_index(std::int32_t id) const {
  LLAMA2CPP_CHECK(id >= 0 && id < vocab_size(), "id ", id, " is not in the vocabulary of ", vocab_size(), " pieces");
  return static_cast<std::size_t>(id);
}

std::vector<std::string> Tokenizer::words(std::string_view text) const {
  LLAMA2CPP_CHECK(impl_->vocabulary.is<ByteBpeRules>(), "only byte-level BPE cuts a text into words");
  return impl_->encoder->words(text);
}

std::int64_t Tokenizer::vocab_size() const { return static_cast<std::int64_t>(impl_->vocabulary.pieces.size()); }

const Vocabulary& Tokenizer::vocabulary() const { return impl_->vocabulary; }

}  // namespace llama2cpp
