// JSON, strictly as RFC 8259 has it, for what comes with models: headers of a few lines and tokenizers of tens of
// megabytes. A document is parsed once, into a flat array. A Json is a view of one value in it, whose accessors say
// what they expected, what they found and where: "config.rope_scaling.factor (byte 812): expected a number, found null".
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace llama2cpp {

class JsonDocument;
class JsonRange;
struct JsonNode;

// Two words; valid while its document lives. Every accessor throws FormatError for a value of another type.
class Json {
 public:
  enum class Type : std::uint8_t { null, boolean, integer, number, string, array, object };

  Type type() const;
  bool is_null() const { return type() == Type::null; }

  bool boolean() const;
  // Integers, written without fraction and exponent, are exact; those that do not fit are errors.
  std::int64_t int64() const;
  std::uint64_t uint64() const;
  double number() const;            // any number
  std::string_view string() const;  // UTF-8, escapes undone; may hold zeros

  std::size_t size() const;                               // of an array or an object
  Json at(std::size_t index) const;                       // of an array
  Json get(std::string_view name) const;                  // of an object, which must have that member
  std::optional<Json> find(std::string_view name) const;  // the same; nothing where it is missing or null

  // for (const Json layer : config.get("layers").elements()) ...
  JsonRange elements() const;     // of an array
  JsonRange members() const;      // of an object, in the order of the text
  std::string_view name() const;  // what the object that it is a member of calls it

  // The way from the document to here: config.layers[3].type, header["a name that needs quotes"].
  std::string path() const;
  // Throws FormatError: "path (byte n): problem".
  [[noreturn]] void fail(std::string_view problem) const;

 private:
  friend class JsonDocument;
  friend class JsonRange;
  Json(const JsonDocument* document, std::uint32_t index) : document_(document), index_(index) {}

  const JsonNode& node() const;
  const JsonNode& expect(Type type) const;
  std::optional<Json> member(std::string_view name) const;  // null or not

  const JsonDocument* document_;
  std::uint32_t index_;
};

// The values in an array or an object.
class JsonRange {
 public:
  class Iterator {
   public:
    using value_type = Json;
    using difference_type = std::ptrdiff_t;

    Iterator(const JsonDocument* document, std::uint32_t index) : document_(document), index_(index) {}
    Json operator*() const { return {document_, index_}; }
    Iterator& operator++();
    Iterator operator++(int) {
      const Iterator before = *this;
      ++*this;
      return before;
    }
    bool operator==(const Iterator&) const = default;

   private:
    const JsonDocument* document_;
    std::uint32_t index_;
  };

  JsonRange(const JsonDocument* document, std::uint32_t first, std::uint32_t after)
      : first_(document, first), after_(document, after) {}
  Iterator begin() const { return first_; }
  Iterator end() const { return after_; }

 private:
  Iterator first_, after_;
};

// One value. Those within it follow it, up to `after`.
struct JsonNode {
  // Of an array or an object: its children are order[begin], order[begin + 1] ...; members are sorted by name.
  struct Children {
    std::uint32_t begin;
    std::uint32_t count;
  };

  std::string_view name;  // of a member
  std::string_view string;
  std::uint32_t offset = 0;  // its first byte in the text
  std::uint32_t parent = 0;  // of the root: itself
  std::uint32_t after = 0;
  Json::Type type = Json::Type::null;
  bool negative = false;  // of an integer
  union {
    std::uint64_t integer = 0;  // two's complement where it is negative
    bool boolean;
    double number;
    Children children;
  };
};

class JsonDocument {
 public:
  // `text` must outlive the document: strings without escapes are views of it. Errors begin with `name`, and count bytes
  // from `offset`, where the text begins in its file. Throws FormatError for anything that is not JSON in UTF-8, for an
  // object that has a name twice, and for more than 100 values within each other.
  JsonDocument(std::string_view text, std::string name, std::size_t offset = 0);
  JsonDocument(const JsonDocument&) = delete;
  JsonDocument& operator=(const JsonDocument&) = delete;

  Json root() const { return {this, 0}; }

 private:
  friend class Json;
  friend class JsonRange;
  friend class JsonParser;

  std::string name_;
  std::size_t offset_;
  std::vector<JsonNode> nodes_;
  std::vector<std::uint32_t> order_;   // see JsonNode::Children
  std::deque<std::string> unescaped_;  // strings that are not in the text as they are
};

}  // namespace llama2cpp
