// The format, from its specification (github.com/ggml-org/ggml, docs/gguf.md) and ggml's own checks. Little-endian:
//   4 bytes "GGUF", u32 version, u64 number of tensors, u64 number of metadata values
//   for each value: string key, u32 type, the value. A string is a u64 length and its bytes, an array is the u32 type of
//     its elements, their u64 number, and the elements.
//   for each tensor: string name, u32 number of dimensions, that many u64 sizes, u32 type, u64 offset
//   from the next multiple of general.alignment on: the tensors. Offsets count from here and are multiples of it too.
#include "io/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "core/file_kind.h"
#include "core/quote.h"
#include "core/utf8.h"
#include "io/ggml_types.h"

namespace llama2cpp {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are used in place");

// THE limits. Everything else is limited by the length of the file: each entry of a header takes bytes of it.
constexpr std::size_t kMaxKeyBytes = 65'535;          // the specification's
constexpr std::size_t kMaxTensorNameBytes = 64;       // the specification's
constexpr std::uint32_t kMaxDimensions = 4;           // ggml's
constexpr std::uint64_t kMaxAlignment = 1ULL << 20;   // far above a page; keeps sums of offsets small
constexpr std::uint64_t kMaxSize = (1ULL << 62) - 1;  // of a dimension: it fits a signed number

constexpr std::string_view kMagic = "GGUF";
constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr std::uint64_t kDefaultAlignment = 32;

// The least bytes that an entry of the header takes: counts are checked with them before anything is allocated.
constexpr std::size_t kLeastValueBytes = 8 + 4 + 1;           // an empty key, a type, one byte
constexpr std::size_t kLeastTensorBytes = 8 + 4 + 8 + 4 + 8;  // an empty name, one dimension, type, offset

struct TypeFacts {
  std::string_view name;
  std::size_t bytes;  // a string's least
};

// By GgufType's numbers.
constexpr TypeFacts kTypes[] = {
    {"uint8", 1}, {"int8", 1},   {"uint16", 2}, {"int16", 2},  {"uint32", 4}, {"int32", 4},   {"float32", 4},
    {"bool", 1},  {"string", 8}, {"array", 12}, {"uint64", 8}, {"int64", 8},  {"float64", 8},
};

const TypeFacts& facts_of(GgufType type) { return kTypes[static_cast<std::size_t>(type)]; }

template <class Number>
Number load(const Buffer& file, std::size_t offset) {
  Number number{};
  std::memcpy(&number, file.data() + offset, sizeof(number));
  return number;
}

std::int64_t load_integer(const Buffer& file, GgufType type, std::size_t offset) {
  switch (type) {
    case GgufType::u8:
      return load<std::uint8_t>(file, offset);
    case GgufType::i8:
      return load<std::int8_t>(file, offset);
    case GgufType::u16:
      return load<std::uint16_t>(file, offset);
    case GgufType::i16:
      return load<std::int16_t>(file, offset);
    case GgufType::u32:
      return load<std::uint32_t>(file, offset);
    case GgufType::i32:
      return load<std::int32_t>(file, offset);
    default:
      return load<std::int64_t>(file, offset);  // u64 too: the caller has checked its upper bit
  }
}

bool is_integer(GgufType type) { return type <= GgufType::i32 || type == GgufType::u64 || type == GgufType::i64; }

std::string_view load_string(const Buffer& file, std::size_t offset) {
  const auto length = static_cast<std::size_t>(load<std::uint64_t>(file, offset));
  return {reinterpret_cast<const char*>(file.data()) + offset + sizeof(std::uint64_t), length};
}

// Walks through the header. What it cannot find in the file is an error that says what was being read.
class Cursor {
 public:
  explicit Cursor(const Buffer& file) : file_(file) {}

  std::size_t at() const { return at_; }
  std::size_t left() const { return file_.size() - at_; }

  template <class Number>
  Number parse(const std::string& what) {
    expect(sizeof(Number), what);
    const auto number = load<Number>(file_, at_);
    at_ += sizeof(Number);
    return number;
  }

  // A name, which messages quote.
  std::string_view parse_name(const std::string& what) {
    const std::string_view text = parse_string(what);
    const std::size_t valid = utf8_valid_bytes(text);
    if (valid != text.size()) throw FormatError(cat(what, ": byte ", at_ - text.size() + valid, " is not UTF-8"));
    return text;
  }

  // Any bytes: whether a value is UTF-8 matters only where it is read.
  std::string_view parse_string(const std::string& what) {
    const std::size_t begin = at_;
    const auto length = parse<std::uint64_t>(what);
    if (length > left()) {
      throw FormatError(
          cat(what, " (byte ", begin, ") is a text of ", length, " bytes, but ", left(), " are left in the file"));
    }
    const std::string_view text = load_string(file_, begin);
    at_ += text.size();
    return text;
  }

  GgufType parse_type(const std::string& what) {
    const std::size_t begin = at_;
    const auto type = parse<std::uint32_t>(what);
    if (type >= std::size(kTypes)) {
      throw FormatError(cat(what, " has type ", type, " (byte ", begin, "), expected 0 to ", std::size(kTypes) - 1));
    }
    return static_cast<GgufType>(type);
  }

  void skip(std::size_t bytes, const std::string& what) {
    expect(bytes, what);
    at_ += bytes;
  }

 private:
  void expect(std::size_t bytes, const std::string& what) const {
    if (left() < bytes) {
      throw FormatError(
          cat(what, " takes ", bytes, " bytes from byte ", at_, " on, but ", left(), " are left in the file"));
    }
  }

  const Buffer& file_;
  std::size_t at_ = 0;
};

std::uint32_t read_version(Cursor& cursor, const Buffer& file) {
  if (!has_gguf_magic(file)) throw FormatError("no magic 'GGUF' (bytes 47 47 55 46)");
  cursor.skip(kMagic.size(), "the magic");
  const auto version = cursor.parse<std::uint32_t>("the version");
  if (version == 2 || version == 3) return version;
  if (version != 0 && (version & 0xFFFFU) == 0) {
    throw FormatError(cat("version (byte 4) is ", version >> 24,
                          " written big-endian: this GGUF file is for big-endian "
                          "machines, expected a little-endian one"));
  }
  throw FormatError(
      cat("GGUF version (byte 4) is ", version, ", expected 2 or 3",
          version == 1 ? ": version 1 was in use for some weeks of 2023 only; convert the model again" : ""));
}

std::size_t read_count(Cursor& cursor, const char* what, std::size_t least_bytes) {
  const std::size_t begin = cursor.at();
  const auto count = cursor.parse<std::uint64_t>(what);
  if (count > cursor.left() / least_bytes) {
    throw FormatError(cat(what, " (byte ", begin, ") is ", count, ", but the ", cursor.left(),
                          " bytes that follow have room for ", cursor.left() / least_bytes));
  }
  return static_cast<std::size_t>(count);
}

void skip_element(Cursor& cursor, const Buffer& file, GgufType type, const std::string& what) {
  if (type == GgufType::string) {
    cursor.parse_string(what);
    return;
  }
  cursor.skip(facts_of(type).bytes, what);
  if (type == GgufType::boolean && load<std::uint8_t>(file, cursor.at() - 1) > 1) {
    throw FormatError(cat(what, " (byte ", cursor.at() - 1, ") is ", int{load<std::uint8_t>(file, cursor.at() - 1)},
                          ", expected a bool: 0 or 1"));
  }
}

GgufValue read_value(Cursor& cursor, const Buffer& file, const std::string& what) {
  GgufValue value;
  value.type = cursor.parse_type(what);
  value.is_array = value.type == GgufType::array;
  if (value.is_array) {
    value.type = cursor.parse_type(what);
    if (value.type == GgufType::array) throw FormatError(cat(what, " is an array of arrays, which nobody writes"));
    const std::size_t begin = cursor.at();
    value.count = cursor.parse<std::uint64_t>(what);
    const std::size_t least = facts_of(value.type).bytes;
    if (value.count > cursor.left() / least) {
      throw FormatError(cat(what, " (byte ", begin, ") is an array of ", value.count, " ", facts_of(value.type).name,
                            "s, but ", cursor.left(), " bytes are left in the file"));
    }
  }
  value.offset = cursor.at();
  if (value.is_array && value.type != GgufType::string && value.type != GgufType::boolean) {
    cursor.skip(static_cast<std::size_t>(value.count) * facts_of(value.type).bytes, what);
    return value;
  }
  for (std::uint64_t i = 0; i < value.count; ++i) skip_element(cursor, file, value.type, what);
  return value;
}

std::map<std::string_view, GgufValue> read_metadata(Cursor& cursor, const Buffer& file, std::size_t count) {
  std::map<std::string_view, GgufValue> metadata;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t begin = cursor.at();
    const std::string_view key = cursor.parse_name(cat("the key of metadata value ", i));
    if (key.empty() || key.size() > kMaxKeyBytes) {
      throw FormatError(cat("the key of metadata value ", i, " (byte ", begin, ") has ", key.size(),
                            " bytes, expected 1 to ", kMaxKeyBytes));
    }
    const std::string what = cat("metadata ", excerpt(key));
    if (metadata.contains(key)) throw FormatError(cat(what, " (byte ", begin, ") is there twice"));
    metadata.emplace(key, read_value(cursor, file, what));
  }
  return metadata;
}

const Format& read_format(Cursor& cursor, const std::string& what) {
  const std::size_t begin = cursor.at();
  const auto number = cursor.parse<std::uint32_t>(what);
  const GgmlType* type = find_ggml_type(number);
  if (type == nullptr)
    throw FormatError(cat(what, " has type ", number, " (byte ", begin, "), which ggml does not have"));
  if (type->format.empty()) {
    throw FormatError(cat(what, " has type ", type->name, " (", number, ", byte ", begin,
                          "), which this version does not "
                          "read"));
  }
  return find_format(type->format);
}

// Sizes, type and offset of a tensor; where it lies is checked when the end of the header is known.
GgufTensor read_tensor(Cursor& cursor, const std::string& what) {
  GgufTensor tensor;
  const std::size_t begin = cursor.at();
  const auto dimensions = cursor.parse<std::uint32_t>(what);
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    throw FormatError(cat(what, " has ", dimensions, " dimensions (byte ", begin, "), expected 1 to ", kMaxDimensions));
  }
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    const auto size = cursor.parse<std::uint64_t>(what);
    if (size < 1 || size > kMaxSize) {
      throw FormatError(cat(what, ": size ", i, " (byte ", cursor.at() - sizeof(size), ") is ", size,
                            ", expected 1 or more, below 2^62"));
    }
    tensor.shape.push_back(static_cast<std::int64_t>(size));
  }
  tensor.format = &read_format(cursor, what);
  if (tensor.shape[0] % tensor.format->group != 0) {
    throw FormatError(cat(what, " has rows of ", tensor.shape[0], ", which blocks of ", tensor.format->group, " (",
                          tensor.format->name, ") do not fill"));
  }
  // The offset, until place() adds where data begins. (Clipped on systems of 32 bits; place() refuses it.)
  tensor.begin = static_cast<std::size_t>(
      std::min<std::uint64_t>(cursor.parse<std::uint64_t>(what), std::numeric_limits<std::size_t>::max()));
  return tensor;
}

std::size_t bytes_of(const GgufTensor& tensor) {
  auto bytes = static_cast<std::size_t>(tensor.shape[0] / tensor.format->group);
  bytes = checked_mul(bytes, static_cast<std::size_t>(tensor.format->group_bytes), "a row's length");
  for (std::size_t i = 1; i < tensor.shape.size(); ++i) {
    bytes = checked_mul(bytes, static_cast<std::size_t>(tensor.shape[i]), "the tensor's length");
  }
  return bytes;
}

// Makes begin and end bytes of the file. `data` is where offsets count from.
void place(GgufTensor& tensor, const std::string& what, std::size_t data, std::size_t alignment,
           std::size_t file_size) {
  const std::size_t offset = tensor.begin;
  if (offset % alignment != 0) {
    throw FormatError(cat(what, " (byte ", tensor.described, ") has offset ", offset,
                          ", expected a multiple of the "
                          "alignment ",
                          alignment));
  }
  std::size_t bytes = 0;
  try {
    bytes = bytes_of(tensor);
  } catch (const FormatError& error) {
    throw FormatError(cat(what, " (byte ", tensor.described, "): ", error.what()));
  }
  if (data > file_size || offset > file_size - data || bytes > file_size - data - offset) {
    throw FormatError(cat(what, " (byte ", tensor.described, ") takes ", bytes, " bytes from offset ", offset,
                          " on (byte ", data, " + ", offset, "), but the file has ", file_size, " bytes"));
  }
  tensor.begin = data + offset;
  tensor.end = tensor.begin + bytes;
}

void check_overlaps(const std::map<std::string_view, GgufTensor>& tensors) {
  using Entry = std::pair<const std::string_view, GgufTensor>;
  std::vector<const Entry*> places;
  for (const Entry& entry : tensors) places.push_back(&entry);
  std::sort(places.begin(), places.end(),
            [](const Entry* a, const Entry* b) { return a->second.begin < b->second.begin; });
  for (std::size_t i = 1; i < places.size(); ++i) {
    const auto& [before, first] = *places[i - 1];
    const auto& [name, second] = *places[i];
    if (second.begin < first.end) {
      throw FormatError(cat("tensor ", excerpt(name), " begins at byte ", second.begin, ", inside of tensor ",
                            excerpt(before), ", which takes bytes ", first.begin, " to ", first.end));
    }
  }
}

}  // namespace

bool has_gguf_magic(const Buffer& file) {
  return file.size() >= kMagic.size() && std::memcmp(file.data(), kMagic.data(), kMagic.size()) == 0;
}

Gguf::Gguf(const Buffer& file) : file_(file) {
  refuse_stand_in({file.data(), file.size()}, "a GGUF file");
  Cursor cursor(file_);
  version_ = read_version(cursor, file_);
  const std::size_t tensors = read_count(cursor, "the number of tensors", kLeastTensorBytes);
  const std::size_t values = read_count(cursor, "the number of metadata values", kLeastValueBytes);
  metadata_ = read_metadata(cursor, file_, values);

  const auto given =
      static_cast<std::uint64_t>(integer(kAlignmentKey).value_or(static_cast<std::int64_t>(kDefaultAlignment)));
  if (!std::has_single_bit(given) || given > kMaxAlignment) {
    fail(kAlignmentKey, cat(given, ", expected a power of two up to ", kMaxAlignment));
  }
  const auto alignment = static_cast<std::size_t>(given);

  for (std::size_t i = 0; i < tensors; ++i) {
    const std::size_t begin = cursor.at();
    const std::string_view name = cursor.parse_name(cat("the name of tensor ", i));
    if (name.empty() || name.size() > kMaxTensorNameBytes) {
      throw FormatError(cat("the name of tensor ", i, " (byte ", begin, ") has ", name.size(), " bytes, expected 1 to ",
                            kMaxTensorNameBytes));
    }
    const std::string what = cat("tensor ", excerpt(name));
    if (tensors_.contains(name)) throw FormatError(cat(what, " (byte ", begin, ") is there twice"));
    GgufTensor tensor = read_tensor(cursor, what);
    tensor.described = begin;
    tensor.file = file_;
    tensors_.emplace(name, std::move(tensor));
  }
  const std::size_t data =
      (cursor.at() + alignment - 1) / alignment * alignment;  // far from overflow: at() <= file size
  for (auto& [name, tensor] : tensors_) place(tensor, cat("tensor ", excerpt(name)), data, alignment, file_.size());
  check_overlaps(tensors_);
}

void Gguf::add_tensors(const Gguf& part) {
  for (const auto& [name, tensor] : part.tensors_) {
    if (!tensors_.emplace(name, tensor).second) {
      throw FormatError(
          cat("tensor ", excerpt(name), " (byte ", tensor.described, ") is in a file before this one too"));
    }
  }
}

void Gguf::fail(std::string_view key, std::string_view problem) const {
  throw FormatError(cat("metadata ", excerpt(key), " (byte ", metadata_.at(key).offset, ") is ", problem));
}

const GgufValue* Gguf::find(std::string_view key, bool array) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return nullptr;
  const GgufValue& value = found->second;
  if (value.is_array != array) {
    fail(key, cat(value.is_array ? "an array" : cat("a single ", facts_of(value.type).name), ", expected ",
                  array ? "an array" : "a single value"));
  }
  return &value;
}

std::optional<std::int64_t> Gguf::integer(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return {};
  if (!is_integer(value->type)) fail(key, cat("a ", facts_of(value->type).name, ", expected an integer"));
  const std::int64_t number = load_integer(file_, value->type, value->offset);
  if (value->type == GgufType::u64 && number < 0) {
    fail(key, cat(static_cast<std::uint64_t>(number), ", expected an integer below 2^63"));
  }
  return number;
}

std::optional<double> Gguf::number(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return {};
  if (value->type == GgufType::f32) return load<float>(file_, value->offset);
  if (value->type == GgufType::f64) return load<double>(file_, value->offset);
  fail(key, cat("a ", facts_of(value->type).name, ", expected a float"));
}

std::optional<bool> Gguf::boolean(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return {};
  if (value->type != GgufType::boolean) fail(key, cat("a ", facts_of(value->type).name, ", expected a bool"));
  return load<std::uint8_t>(file_, value->offset) == 1;
}

std::optional<std::string_view> Gguf::string(std::string_view key) const {
  const GgufValue* value = find(key, false);
  if (value == nullptr) return {};
  if (value->type != GgufType::string) fail(key, cat("a ", facts_of(value->type).name, ", expected a string"));
  return text_at(key, value->offset);
}

std::string_view Gguf::text_at(std::string_view key, std::size_t offset) const {
  const std::string_view text = load_string(file_, offset);
  const std::size_t valid = utf8_valid_bytes(text);
  if (valid != text.size()) {
    throw FormatError(
        cat("metadata ", excerpt(key), ": byte ", offset + sizeof(std::uint64_t) + valid, " is not UTF-8"));
  }
  return text;
}

std::optional<std::vector<std::int64_t>> Gguf::integers(std::string_view key) const {
  const GgufValue* value = find(key, true);
  if (value == nullptr) return {};
  if (!is_integer(value->type) || value->type == GgufType::u64) {
    fail(key, cat("an array of ", facts_of(value->type).name, "s, expected integers that fit int64"));
  }
  std::vector<std::int64_t> numbers;
  numbers.reserve(static_cast<std::size_t>(value->count));
  for (std::size_t i = 0; i < value->count; ++i) {
    numbers.push_back(load_integer(file_, value->type, value->offset + i * facts_of(value->type).bytes));
  }
  return numbers;
}

std::optional<std::vector<bool>> Gguf::booleans(std::string_view key) const {
  const GgufValue* value = find(key, true);
  if (value == nullptr) return {};
  if (value->type != GgufType::boolean) fail(key, cat("an array of ", facts_of(value->type).name, "s, expected bools"));
  std::vector<bool> booleans;
  for (std::size_t i = 0; i < value->count; ++i) {
    booleans.push_back(load<std::uint8_t>(file_, value->offset + i) == 1);
  }
  return booleans;
}

std::optional<std::vector<float>> Gguf::numbers(std::string_view key) const {
  const GgufValue* value = find(key, true);
  if (value == nullptr) return {};
  if (value->type != GgufType::f32) fail(key, cat("an array of ", facts_of(value->type).name, "s, expected float32s"));
  std::vector<float> numbers(static_cast<std::size_t>(value->count));
  if (!numbers.empty()) std::memcpy(numbers.data(), file_.data() + value->offset, numbers.size() * sizeof(float));
  return numbers;
}

std::optional<std::vector<std::string_view>> Gguf::strings(std::string_view key) const {
  const GgufValue* value = find(key, true);
  if (value == nullptr) return {};
  if (value->type != GgufType::string)
    fail(key, cat("an array of ", facts_of(value->type).name, "s, expected strings"));
  std::vector<std::string_view> texts;
  texts.reserve(static_cast<std::size_t>(value->count));
  std::size_t at = value->offset;
  for (std::uint64_t i = 0; i < value->count; ++i) {
    texts.push_back(text_at(key, at));
    at += sizeof(std::uint64_t) + texts.back().size();
  }
  return texts;
}

}  // namespace llama2cpp
