// The tokenizer in a file of panels: all of a Vocabulary, as it is. Metadata "tokenizer" has what is small, as JSON; the
// tensors are
//   tokenizer.pieces         U8 [bytes]   all pieces, one after another
//   tokenizer.piece_bytes    I32 [n]      how many bytes each has
//   tokenizer.scores         F32 [n]
//   tokenizer.types          U8 [n]       PieceType
//   tokenizer.merges         I32 [m, 3]   left id, right id, id of both
//   tokenizer.added          I32 [a, 4]   id, lstrip, rstrip, normalized
//   tokenizer.unk_surface    U8 [bytes]
//   tokenizer.chat_template  U8 [bytes]
// Whether ids exist and merges fit is for whoever makes a tokenizer of it to check (text/tokenizer.cpp), as for all files.
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/json.h"
#include "io/panel_file.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kPrefix = "tokenizer.";
constexpr std::string_view kTensors[] = {"pieces", "piece_bytes", "scores",      "types",
                                         "merges", "added",       "unk_surface", "chat_template"};

struct Bytes {
  const std::byte* data;
  std::size_t size;
};

// A tensor of `width` numbers in each row; 1 for a vector.
Bytes tensor_of(const SafetensorsHeader& header, const Buffer& file, std::string_view name, std::string_view dtype,
                std::int64_t width = 1) {
  const auto found = header.tensors.find(cat(kPrefix, name));
  if (found == header.tensors.end()) throw FormatError(cat("tensor '", kPrefix, name, "' is missing"));
  const SafetensorsTensor& tensor = found->second;
  const bool fits = width == 1 ? tensor.shape.size() == 1 : tensor.shape.size() == 2 && tensor.shape[1] == width;
  if (tensor.dtype != dtype || !fits) {
    throw FormatError(cat("tensor '", kPrefix, name, "' is ", describe_tensor(tensor.dtype, tensor.shape),
                          ", expected ", dtype, width == 1 ? " [n]" : cat(" [n, ", width, "]")));
  }
  return {file.data() + tensor.begin, tensor.end - tensor.begin};
}

std::string string_of(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data), bytes.size}; }

template <class T>
std::vector<T> numbers_of(const Bytes& bytes) {
  std::vector<T> numbers(bytes.size / sizeof(T));
  if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data, numbers.size() * sizeof(T));
  return numbers;
}

// The pieces that the lengths cut the bytes into, to the last byte.
std::vector<std::string> cut(const std::string& bytes, const std::vector<std::int32_t>& lengths) {
  std::vector<std::string> pieces;
  pieces.reserve(lengths.size());
  std::size_t at = 0;
  for (const std::int32_t length : lengths) {
    if (length < 0 || static_cast<std::size_t>(length) > bytes.size() - at) {
      throw FormatError(
          cat("tokenizer: piece ", pieces.size(), " has ", length, " bytes, and ", bytes.size() - at, " are left"));
    }
    pieces.emplace_back(bytes, at, static_cast<std::size_t>(length));
    at += static_cast<std::size_t>(length);
  }
  if (at != bytes.size()) throw FormatError(cat("tokenizer: its pieces have ", at, " of ", bytes.size(), " bytes"));
  return pieces;
}

std::int32_t id_of(const Json& number) {
  const std::int64_t id = number.int64();
  if (id < -1 || id > std::numeric_limits<std::int32_t>::max()) number.fail(cat(id, " is no id"));
  return static_cast<std::int32_t>(id);
}

template <class Enum>
Enum enum_of(const Json& number, Enum last) {
  const std::int64_t value = number.int64();
  if (value < 0 || value > static_cast<std::int64_t>(last)) {
    number.fail(cat("expected 0 to ", static_cast<int>(last), ", found ", value));
  }
  return static_cast<Enum>(value);
}

void read_settings(const Json& settings, Vocabulary& vocabulary) {
  constexpr std::string_view kKnown[] = {
      "kind",   "bos_id",     "eos_ids",       "unk_id",       "add_dummy_prefix", "remove_extra_whitespaces",
      "prefix", "normalizes", "pre_tokenizer", "merges_by_id", "ignore_merges",    "add_bos",
      "add_eos"};
  for (const Json setting : settings.members()) {
    const bool known = std::find(std::begin(kKnown), std::end(kKnown), setting.name()) != std::end(kKnown);
    if (!known) setting.fail("expected no such member");
  }
  vocabulary.kind = enum_of(settings.get("kind"), Vocabulary::Kind::ranked_bpe);
  vocabulary.bos_id = id_of(settings.get("bos_id"));
  vocabulary.eos_ids.clear();
  for (const Json id : settings.get("eos_ids").elements()) vocabulary.eos_ids.push_back(id_of(id));
  vocabulary.unk_id = id_of(settings.get("unk_id"));
  vocabulary.add_dummy_prefix = settings.get("add_dummy_prefix").boolean();
  vocabulary.remove_extra_whitespaces = settings.get("remove_extra_whitespaces").boolean();
  vocabulary.prefix = enum_of(settings.get("prefix"), Vocabulary::Prefix::first_where_none);
  vocabulary.normalizes = settings.get("normalizes").boolean();
  vocabulary.pre_tokenizer = enum_of(settings.get("pre_tokenizer"), Vocabulary::kLastPreTokenizer);
  vocabulary.merges_by_id = settings.get("merges_by_id").boolean();
  vocabulary.ignore_merges = settings.get("ignore_merges").boolean();
  vocabulary.add_bos = settings.get("add_bos").boolean();
  vocabulary.add_eos = settings.get("add_eos").boolean();
}

void check_names(const SafetensorsHeader& header, bool has_tokenizer) {
  for (const auto& [name, tensor] : header.tensors) {
    if (!name.starts_with(kPrefix)) continue;
    const std::string_view rest = std::string_view(name).substr(kPrefix.size());
    const bool known = std::find(std::begin(kTensors), std::end(kTensors), rest) != std::end(kTensors);
    if (!has_tokenizer || !known) throw FormatError(cat("tensor ", excerpt(name), " belongs to no tokenizer"));
  }
}

}  // namespace

std::unique_ptr<Vocabulary> read_panel_vocabulary(const SafetensorsHeader& header, const Buffer& file) {
  const auto settings = header.metadata.find("tokenizer");
  check_names(header, settings != header.metadata.end());
  if (settings == header.metadata.end()) return nullptr;
  auto vocabulary = std::make_unique<Vocabulary>();
  const JsonDocument document(settings->second, "tokenizer");
  read_settings(document.root(), *vocabulary);

  const auto tensor = [&](std::string_view name, std::string_view dtype, std::int64_t width = 1) {
    return tensor_of(header, file, name, dtype, width);
  };
  vocabulary->pieces = cut(string_of(tensor("pieces", "U8")), numbers_of<std::int32_t>(tensor("piece_bytes", "I32")));
  vocabulary->scores = numbers_of<float>(tensor("scores", "F32"));
  for (const std::uint8_t type : numbers_of<std::uint8_t>(tensor("types", "U8"))) {
    if (type > static_cast<std::uint8_t>(PieceType::byte)) {
      throw FormatError(cat("tokenizer: piece ", vocabulary->types.size(), " is of type ", int{type},
                            ", expected 0 to ", static_cast<int>(PieceType::byte)));
    }
    vocabulary->types.push_back(static_cast<PieceType>(type));
  }
  const std::vector<std::int32_t> merges = numbers_of<std::int32_t>(tensor("merges", "I32", 3));
  for (std::size_t i = 0; i + 3 <= merges.size(); i += 3) {
    vocabulary->merges.push_back({merges[i], merges[i + 1], merges[i + 2]});
  }
  const std::vector<std::int32_t> added = numbers_of<std::int32_t>(tensor("added", "I32", 4));
  for (std::size_t i = 0; i + 4 <= added.size(); i += 4) {
    vocabulary->added.push_back({added[i], added[i + 1] != 0, added[i + 2] != 0, added[i + 3] != 0});
  }
  vocabulary->unk_surface = string_of(tensor("unk_surface", "U8"));
  vocabulary->chat_template = string_of(tensor("chat_template", "U8"));
  return vocabulary;
}

}  // namespace llama2cpp
