// SentencePiece's .model: a protocol buffer, of which this reads the few fields that encoding and decoding need.
//   ModelProto      1 pieces (repeated), 2 trainer_spec, 3 normalizer_spec, 5 denormalizer_spec
//   SentencePiece   1 piece, 2 score, 3 type
//   TrainerSpec     3 model_type, 24 treat_whitespace_as_suffix, 44 unk_surface, 46 bos_piece, 47 eos_piece
//   NormalizerSpec  2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces
#include <bit>
#include <limits>
#include <string>
#include <string_view>

#include "core/check.h"
#include "core/utf8.h"
#include "text/readers.h"

namespace llama2cpp {
namespace {

enum class Wire : std::uint32_t { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

// One field of a message; `number` holds a varint or a fixed value, `bytes` a string or a message inside this one.
struct Field {
  std::uint32_t id = 0;
  Wire wire = Wire::varint;
  std::uint64_t number = 0;
  std::string_view bytes;
  std::size_t offset = 0;  // in the file: where the field begins
  std::size_t bytes_offset = 0;

  [[noreturn]] void fail(std::string_view what) const { throw FormatError(cat(".model: ", what, " at byte ", offset)); }

  // A field is only taken for what it is if it has that type on the wire too.
  std::uint64_t as_varint(const char* name) const {
    if (wire != Wire::varint)
      fail(cat(name, ": expected a varint, found wire type ", static_cast<std::uint32_t>(wire)));
    return number;
  }
  bool as_bool(const char* name) const { return as_varint(name) != 0; }
  float as_float(const char* name) const {
    if (wire != Wire::fixed32)
      fail(cat(name, ": expected a float, found wire type ", static_cast<std::uint32_t>(wire)));
    return std::bit_cast<float>(static_cast<std::uint32_t>(number));
  }
  std::string_view as_bytes(const char* name) const {
    if (wire != Wire::bytes) fail(cat(name, ": expected bytes, found wire type ", static_cast<std::uint32_t>(wire)));
    return bytes;
  }
};

// Walks over the fields of one message.
class Message {
 public:
  Message(std::string_view bytes, std::size_t offset) : rest_(bytes), offset_(offset) {}
  Message(const Field& field, const char* name) : Message(field.as_bytes(name), field.bytes_offset) {}

  bool next(Field& field) {
    if (rest_.empty()) return false;
    field = Field{};
    field.offset = offset_;
    const std::uint64_t tag = read_varint(field);
    field.id = static_cast<std::uint32_t>(tag >> 3);
    field.wire = static_cast<Wire>(tag & 7);
    if (field.id == 0 || tag > std::numeric_limits<std::uint32_t>::max()) {
      field.fail(cat("expected a field, found the tag ", tag));
    }
    switch (field.wire) {
      case Wire::varint:
        field.number = read_varint(field);
        return true;
      case Wire::fixed64:
        field.number = read_fixed(field, 8);
        return true;
      case Wire::fixed32:
        field.number = read_fixed(field, 4);
        return true;
      case Wire::bytes: {
        const std::uint64_t length = read_varint(field);
        if (length > rest_.size()) {
          field.fail(cat("field ", field.id, ": expected ", length, " bytes, found ", rest_.size()));
        }
        field.bytes_offset = offset_;
        field.bytes = take(static_cast<std::size_t>(length));
        return true;
      }
    }
    field.fail(cat("field ", field.id, ": wire type ", tag & 7, " is not supported"));
  }

 private:
  std::string_view take(std::size_t length) {
    const std::string_view taken = rest_.substr(0, length);
    rest_.remove_prefix(length);
    offset_ += length;
    return taken;
  }

  std::uint64_t read_varint(const Field& field) {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
      if (rest_.empty()) field.fail("expected the rest of a varint, found the end");
      const auto byte = static_cast<std::uint8_t>(take(1)[0]);
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    field.fail("a varint of more than 10 bytes");
  }

  std::uint64_t read_fixed(const Field& field, std::size_t length) {
    if (rest_.size() < length) field.fail(cat("expected ", length, " bytes, found ", rest_.size()));
    const std::string_view taken = take(length);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < length; ++i) {
      value |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(taken[i])) << (8 * i);
    }
    return value;
  }

  std::string_view rest_;
  std::size_t offset_;
};

PieceType type_of(const Field& field, std::size_t id) {
  const std::uint64_t number = field.as_varint("a piece's type");
  const auto type = piece_type_of(number);
  if (!type) field.fail(cat("piece ", id, ": expected a type from 1 to 6, found ", number));
  return *type;
}

constexpr std::uint64_t kUnigram = 1;
constexpr std::uint64_t kBpe = 2;
constexpr std::uint64_t kCharacters = 4;

struct Specs {
  std::uint64_t model_type = kUnigram;
  std::string bos_piece = "<s>";
  std::string eos_piece = "</s>";
  bool has_denormalizer = false;
  bool whitespace_as_suffix = false;
  bool escape_whitespaces = true;
};

void read_piece(const Field& message, Vocabulary& vocabulary, SentencePieceRules& rules) {
  const std::size_t id = vocabulary.pieces.size();
  std::string_view piece;
  float score = 0.0f;
  PieceType type = PieceType::normal;
  Message fields(message, "a piece");
  for (Field field; fields.next(field);) {
    if (field.id == 1) piece = field.as_bytes("a piece's text");
    if (field.id == 2) score = field.as_float("a piece's score");
    if (field.id == 3) type = type_of(field, id);
  }
  if (piece.empty()) message.fail(cat("piece ", id, ": expected a text, found none"));
  if (type == PieceType::unknown) {
    if (vocabulary.unk_id >= 0) {
      message.fail(cat("piece ", id, ": a second unknown piece; the first is ", vocabulary.unk_id));
    }
    vocabulary.unk_id = static_cast<std::int32_t>(id);
  }
  vocabulary.pieces.emplace_back(piece);
  rules.scores.push_back(score);
  vocabulary.types.push_back(type);
}

std::string_view non_empty(std::string_view name, std::string_view otherwise) {
  return name.empty() ? otherwise : name;
}

void read_trainer_spec(const Field& message, Vocabulary& vocabulary, Specs& specs) {
  Message fields(message, "trainer_spec");
  for (Field field; fields.next(field);) {
    if (field.id == 3) specs.model_type = field.as_varint("model_type");
    if (field.id == 24) specs.whitespace_as_suffix = field.as_bool("treat_whitespace_as_suffix");
    if (field.id == 44) vocabulary.unk_surface = field.as_bytes("unk_surface");
    if (field.id == 46) specs.bos_piece = non_empty(field.as_bytes("bos_piece"), "<s>");
    if (field.id == 47) specs.eos_piece = non_empty(field.as_bytes("eos_piece"), "</s>");
  }
}

void read_normalizer_spec(const Field& message, SentencePieceRules& rules, Specs& specs) {
  Message fields(message, "normalizer_spec");
  for (Field field; fields.next(field);) {
    if (field.id == 2) rules.charsmap = field.as_bytes("precompiled_charsmap");
    if (field.id == 3) rules.add_space_prefix = field.as_bool("add_dummy_prefix");
    if (field.id == 4) rules.remove_extra_whitespaces = field.as_bool("remove_extra_whitespaces");
    if (field.id == 5) specs.escape_whitespaces = field.as_bool("escape_whitespaces");
  }
}

void read_denormalizer_spec(const Field& message, Specs& specs) {
  Message fields(message, "denormalizer_spec");
  for (Field field; fields.next(field);) {
    if (field.id == 2) specs.has_denormalizer = !field.as_bytes("the denormaliser's charsmap").empty();
  }
}

void refuse_unsupported(const Specs& specs) {
  if (specs.model_type != kBpe && specs.model_type != kUnigram && specs.model_type != kCharacters) {
    constexpr std::uint64_t kWords = 3;
    throw FormatError(cat(".model: expected a BPE, a Unigram or a character model, found one of type ",
                          specs.model_type == kWords ? "word" : cat(specs.model_type)));
  }
  if (specs.has_denormalizer) throw FormatError(".model: a denormaliser is not supported");
  if (specs.whitespace_as_suffix) throw FormatError(".model: treat_whitespace_as_suffix is not supported");
  if (!specs.escape_whitespaces) throw FormatError(".model: escape_whitespaces = false is not supported");
}

// A character model is a BPE without merges, if its pieces are characters.
void check_characters(const Vocabulary& vocabulary) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    const std::string& piece = vocabulary.pieces[i];
    if (vocabulary.types[i] != PieceType::normal || piece.size() <= utf8_length_of_lead(piece[0])) continue;
    throw FormatError(
        cat(".model: piece ", i, " of a character model is ", quoted_piece(piece), ", expected one character"));
  }
}

std::int32_t control_id(const Vocabulary& vocabulary, std::string_view piece) {
  for (std::size_t i = 0; i < vocabulary.pieces.size(); ++i) {
    if (vocabulary.types[i] == PieceType::control && vocabulary.pieces[i] == piece) return static_cast<std::int32_t>(i);
  }
  return -1;
}

}  // namespace

Vocabulary read_sentencepiece_model(std::span<const std::byte> file) {
  Vocabulary vocabulary;
  auto& rules = vocabulary.rules.emplace<SentencePieceRules>();
  vocabulary.unk_id = -1;
  rules.remove_extra_whitespaces = true;  // the format's default
  Specs specs;

  Message model({reinterpret_cast<const char*>(file.data()), file.size()}, 0);
  for (Field field; model.next(field);) {
    if (field.id == 1) read_piece(field, vocabulary, rules);
    if (field.id == 2) read_trainer_spec(field, vocabulary, specs);
    if (field.id == 3) read_normalizer_spec(field, rules, specs);
    if (field.id == 5) read_denormalizer_spec(field, specs);
  }
  if (vocabulary.pieces.empty()) throw FormatError(cat(".model: found no pieces in ", file.size(), " bytes"));
  refuse_unsupported(specs);
  rules.unigram = specs.model_type == kUnigram;
  if (specs.model_type == kCharacters) check_characters(vocabulary);
  if (vocabulary.unk_id < 0) {
    throw FormatError(cat(".model: expected a piece of type unknown, found none in ", vocabulary.pieces.size()));
  }
  vocabulary.bos_id = control_id(vocabulary, specs.bos_piece);
  vocabulary.eos_ids.clear();
  if (const std::int32_t eos = control_id(vocabulary, specs.eos_piece); eos >= 0) vocabulary.eos_ids.push_back(eos);
  return vocabulary;
}

}  // namespace llama2cpp
