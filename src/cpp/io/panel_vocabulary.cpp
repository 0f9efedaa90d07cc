#include "io/panel_vocabulary.h"

#include <array>
#include <cstddef>
#include <cstring>
#include <limits>
#include <set>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "io/json.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kKey = "tokenizer";
constexpr std::string_view kPrefix = "tokenizer.";

template <class Enum>
concept IsEnum = std::is_enum_v<Enum>;

// What is stored as an object in a list.
template <class Item>
concept IsItem = std::is_same_v<Item, AddedToken> || std::is_same_v<Item, Split> || std::is_same_v<Item, TextStep>;

// --- writing

std::string json(bool value) { return value ? "true" : "false"; }
std::string json(std::int32_t value) { return cat(value); }
std::string json(const std::string& text) { return quote(text); }
template <IsEnum Enum>
std::string json(Enum value) {
  return quote(name_of(value));
}

// One object; members are added by name.
class JsonObject {
 public:
  void add(std::string_view name, std::string_view value) {
    text_ += cat(text_.empty() ? "" : ",", quote(name), ":", value);
  }
  std::string text() const { return cat("{", text_, "}"); }

 private:
  std::string text_;
};

template <class Items, class Each>
std::string json_list(const Items& items, Each each) {
  std::string text;
  for (const auto& item : items) text += cat(text.empty() ? "" : ",", each(item));
  return cat("[", text, "]");
}

class Writer {
 public:
  explicit Writer(const Vocabulary& vocabulary) {
    object_.add("kind", quote(kind_name(vocabulary)));
    visit_settings(vocabulary, [&](std::string_view name, const auto& value) { put(name, value); });
    stored_.settings = object_.text();
  }

  StoredVocabulary take() { return std::move(stored_); }

 private:
  void put(std::string_view name, bool value) { object_.add(name, json(value)); }
  void put(std::string_view name, std::int32_t value) { object_.add(name, json(value)); }
  void put(std::string_view name, const std::vector<std::int32_t>& ids) {
    object_.add(name, json_list(ids, [](std::int32_t id) { return json(id); }));
  }
  template <IsEnum Enum>
  void put(std::string_view name, Enum value) {
    object_.add(name, quote(name_of(value)));
  }
  template <IsItem Item>
  void put(std::string_view name, const std::vector<Item>& items) {
    object_.add(name, json_list(items, [](const Item& item) {
                  JsonObject object;
                  visit_fields(item,
                               [&](std::string_view field, const auto& value) { object.add(field, json(value)); });
                  return object.text();
                }));
  }
  void put(std::string_view name, const std::string& text) {
    add(cat(name), "U8", {static_cast<std::int64_t>(text.size())}, text);
  }
  void put(std::string_view name, const std::vector<std::string>& texts) {
    std::string all;
    std::vector<std::int32_t> lengths;
    for (const std::string& text : texts) {
      all += text;
      lengths.push_back(static_cast<std::int32_t>(text.size()));
    }
    put(name, all);
    add(cat(name, ".bytes"), "I32", {static_cast<std::int64_t>(lengths.size())}, bytes_of(lengths));
  }
  void put(std::string_view name, const std::vector<float>& numbers) {
    add(cat(name), "F32", {static_cast<std::int64_t>(numbers.size())}, bytes_of(numbers));
  }
  void put(std::string_view name, const std::vector<double>& numbers) {
    add(cat(name), "F64", {static_cast<std::int64_t>(numbers.size())}, bytes_of(numbers));
  }
  void put(std::string_view name, const std::vector<Merge>& merges) {
    add(cat(name), "I32", {static_cast<std::int64_t>(merges.size()), 3}, bytes_of(merges));
  }
  template <IsEnum Enum>
  void put(std::string_view name, const std::vector<Enum>& values) {
    object_.add(name, json_list(kEnumNames<Enum>, [](std::string_view known) { return quote(known); }));
    add(cat(name), "U8", {static_cast<std::int64_t>(values.size())}, bytes_of(values));
  }

  template <class T>
  static std::string bytes_of(const std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
  }

  void add(const std::string& name, std::string dtype, std::vector<std::int64_t> shape, std::string bytes) {
    stored_.tensors.push_back({cat(kPrefix, name), std::move(dtype), std::move(shape), std::move(bytes)});
  }

  JsonObject object_;
  StoredVocabulary stored_;
};

// --- reading

template <IsEnum Enum>
Enum enum_of(const Json& name) {
  const std::optional<Enum> value = find_named<Enum>(name.string());
  if (!value) name.fail(cat(excerpt(name.string()), ", expected one of: ", list_names<Enum>()));
  return *value;
}

class Reader {
 public:
  Reader(const Json& settings, const SafetensorsHeader& header, const Buffer& file)
      : settings_(settings), header_(header), file_(file) {}

  void read(Vocabulary& vocabulary) {
    visit_settings(vocabulary, [&](std::string_view name, auto& value) { get(name, value); });
    for (const Json setting : settings_.members()) {
      if (setting.name() != "kind" && !members_.contains(setting.name())) setting.fail("expected no such member");
    }
    for (const auto& [name, tensor] : header_.tensors) {
      if (name.starts_with(kPrefix) && !tensors_.contains(name)) {
        throw FormatError(cat("tensor ", excerpt(name), " belongs to no tokenizer of this kind"));
      }
    }
  }

 private:
  Json member(std::string_view name) {
    members_.emplace(name);
    return settings_.get(name);
  }

  static void read_json(const Json& json, bool& value) { value = json.boolean(); }
  static void read_json(const Json& json, std::int32_t& id) {
    const std::int64_t number = json.int64();
    if (number < -1 || number > std::numeric_limits<std::int32_t>::max()) json.fail(cat(number, " is no id"));
    id = static_cast<std::int32_t>(number);
  }
  static void read_json(const Json& json, std::string& text) { text = json.string(); }
  template <IsEnum Enum>
  static void read_json(const Json& json, Enum& value) {
    value = enum_of<Enum>(json);
  }
  template <IsItem Item>
  static void read_json(const Json& json, Item& token) {
    std::size_t known = 0;
    visit_fields(token, [&](std::string_view name, auto& value) {
      read_json(json.get(name), value);
      ++known;
    });
    if (json.size() != known) json.fail(cat("expected ", known, " members, found ", json.size()));
  }

  void get(std::string_view name, bool& value) { read_json(member(name), value); }
  void get(std::string_view name, std::int32_t& value) { read_json(member(name), value); }
  template <IsEnum Enum>
  void get(std::string_view name, Enum& value) {
    value = enum_of<Enum>(member(name));
  }
  void get(std::string_view name, std::vector<std::int32_t>& ids) { get_list(name, ids); }
  template <IsItem Item>
  void get(std::string_view name, std::vector<Item>& items) {
    get_list(name, items);
  }
  void get(std::string_view name, std::string& text) { text = text_of(name); }
  void get(std::string_view name, std::vector<std::string>& texts) {
    texts = cut(name, text_of(name), numbers_of<std::int32_t>(cat(name, ".bytes"), "I32"));
  }
  void get(std::string_view name, std::vector<float>& numbers) { numbers = numbers_of<float>(name, "F32"); }
  void get(std::string_view name, std::vector<double>& numbers) { numbers = numbers_of<double>(name, "F64"); }
  void get(std::string_view name, std::vector<Merge>& merges) { merges = numbers_of<Merge>(name, "I32", 3); }
  template <IsEnum Enum>
  void get(std::string_view name, std::vector<Enum>& values) {
    std::vector<Enum> known;
    for (const Json one : member(name).elements()) known.push_back(enum_of<Enum>(one));
    const std::vector<std::uint8_t> numbers = numbers_of<std::uint8_t>(name, "U8");
    values.clear();
    values.reserve(numbers.size());
    for (const std::uint8_t number : numbers) {
      if (number >= known.size()) {
        throw FormatError(cat("tensor '", kPrefix, name, "': number ", values.size(), " is ", int{number}, ", of ",
                              known.size(), " names"));
      }
      values.push_back(known[number]);
    }
  }

  template <class T>
  void get_list(std::string_view name, std::vector<T>& values) {
    values.clear();
    for (const Json item : member(name).elements()) read_json(item, values.emplace_back());
  }

  struct Bytes {
    const std::byte* data;
    std::size_t size;
  };

  // A tensor of `width` numbers in each row; 1 for a vector.
  Bytes tensor_of(std::string_view name, std::string_view dtype, std::int64_t width) {
    const std::string full = cat(kPrefix, name);
    const auto found = header_.tensors.find(full);
    if (found == header_.tensors.end()) throw FormatError(cat("tensor '", full, "' is missing"));
    tensors_.insert(full);
    const SafetensorsTensor& tensor = found->second;
    const bool fits = width == 1 ? tensor.shape.size() == 1 : tensor.shape.size() == 2 && tensor.shape[1] == width;
    if (tensor.dtype != dtype || !fits) {
      throw FormatError(cat("tensor '", full, "' is ", describe_tensor(tensor.dtype, tensor.shape), ", expected ",
                            dtype, width == 1 ? " [n]" : cat(" [n, ", width, "]")));
    }
    return {file_.data() + tensor.begin, tensor.end - tensor.begin};
  }

  std::string text_of(std::string_view name) {
    const Bytes bytes = tensor_of(name, "U8", 1);
    return {reinterpret_cast<const char*>(bytes.data), bytes.size};
  }

  template <class T>
  std::vector<T> numbers_of(std::string_view name, std::string_view dtype, std::int64_t width = 1) {
    const Bytes bytes = tensor_of(name, dtype, width);
    std::vector<T> numbers(bytes.size / sizeof(T));
    if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data, numbers.size() * sizeof(T));
    return numbers;
  }

  // The texts that the lengths cut the bytes into, to the last byte.
  static std::vector<std::string> cut(std::string_view name, const std::string& bytes,
                                      const std::vector<std::int32_t>& lengths) {
    std::vector<std::string> texts;
    texts.reserve(lengths.size());
    std::size_t at = 0;
    for (const std::int32_t length : lengths) {
      if (length < 0 || static_cast<std::size_t>(length) > bytes.size() - at) {
        throw FormatError(cat("tokenizer: number ", texts.size(), " of ", name, " has ", length, " bytes, and ",
                              bytes.size() - at, " are left"));
      }
      texts.emplace_back(bytes, at, static_cast<std::size_t>(length));
      at += static_cast<std::size_t>(length);
    }
    if (at != bytes.size()) {
      throw FormatError(cat("tokenizer: its ", name, " have ", at, " of ", bytes.size(), " bytes"));
    }
    return texts;
  }

  Json settings_;
  const SafetensorsHeader& header_;
  const Buffer& file_;
  std::set<std::string, std::less<>> members_, tensors_;  // those that were read
};

}  // namespace

StoredVocabulary store_vocabulary(const Vocabulary& vocabulary) { return Writer(vocabulary).take(); }

std::unique_ptr<Vocabulary> read_panel_vocabulary(const SafetensorsHeader& header, const Buffer& file) {
  const auto settings = header.metadata.find(kKey);
  if (settings == header.metadata.end()) {
    for (const auto& [name, tensor] : header.tensors) {
      if (name.starts_with(kPrefix)) throw FormatError(cat("tensor ", excerpt(name), " belongs to no tokenizer"));
    }
    return nullptr;
  }
  const JsonDocument document(settings->second, std::string(kKey));
  const Json kind = document.root().get("kind");
  std::optional<Vocabulary> vocabulary = vocabulary_of_kind(kind.string());
  if (!vocabulary) kind.fail(cat(excerpt(kind.string()), ", expected one of: ", list_kinds()));
  Reader(document.root(), header, file).read(*vocabulary);
  return std::make_unique<Vocabulary>(*std::move(vocabulary));
}

}  // namespace llama2cpp
