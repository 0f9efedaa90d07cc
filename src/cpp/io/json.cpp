// The parser, which recurses no deeper than kMaxDepth, and the views of what it has parsed.
#include "io/json.h"

#include <algorithm>
#include <charconv>
#include <limits>

#include "core/check.h"
#include "core/numbers.h"
#include "core/quote.h"
#include "core/utf8.h"

namespace llama2cpp {
namespace {

constexpr int kMaxDepth = 100;

const char* describe(Json::Type type) {
  switch (type) {
    case Json::Type::null:
      return "null";
    case Json::Type::boolean:
      return "a boolean";
    case Json::Type::integer:
      return "an integer";
    case Json::Type::number:
      return "a number";
    case Json::Type::string:
      return "a string";
    case Json::Type::array:
      return "an array";
    case Json::Type::object:
      return "an object";
  }
  return "";
}

bool is_digit(int c) { return c >= '0' && c <= '9'; }
bool is_letter(int c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

bool is_identifier(std::string_view name) {
  return !name.empty() && is_letter(name[0]) &&
         std::all_of(name.begin(), name.end(), [](char c) { return is_letter(c) || is_digit(c); });
}

void append_utf8(std::string& out, std::uint32_t code) {
  const auto add = [&](std::uint32_t byte) { out += static_cast<char>(byte); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | (code >> 6));
    add(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    add(0xE0 | (code >> 12));
    add(0x80 | ((code >> 6) & 0x3F));
    add(0x80 | (code & 0x3F));
  } else {
    add(0xF0 | (code >> 18));
    add(0x80 | ((code >> 12) & 0x3F));
    add(0x80 | ((code >> 6) & 0x3F));
    add(0x80 | (code & 0x3F));
  }
}

}  // namespace

class JsonParser {
 public:
  JsonParser(JsonDocument& document, std::string_view text) : document_(document), text_(text) {}

  void parse() {
    if (text_.size() >= std::numeric_limits<std::uint32_t>::max()) {
      throw FormatError(cat(document_.name_, ": ", text_.size(), " bytes are more JSON than is read at once (4 GB)"));
    }
    parse_value(0, {}, 0);
    skip_space();
    if (at_ < text_.size()) fail("nothing after the value");
  }

 private:
  static constexpr int kEnd = -1;

  int peek() const { return at_ < text_.size() ? static_cast<unsigned char>(text_[at_]) : kEnd; }

  bool accept(int c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }

  void skip_space() {
    for (int c = peek(); c == ' ' || c == '\n' || c == '\r' || c == '\t'; c = peek()) ++at_;
  }

  std::string found() const {
    const int c = peek();
    if (c == kEnd) return "the end";
    if (c > 0x20 && c < 0x7F) return cat("'", static_cast<char>(c), "'");
    return cat("byte ", c);
  }

  [[noreturn]] void throw_at(std::size_t at, const std::string& problem) const {
    throw FormatError(cat(document_.name_, ": byte ", document_.offset_ + at, ": ", problem));
  }
  [[noreturn]] void fail(const char* expected) const { throw_at(at_, cat("expected ", expected, ", found ", found())); }

  JsonNode& node(std::uint32_t index) { return document_.nodes_[index]; }
  std::uint32_t next_index() const { return static_cast<std::uint32_t>(document_.nodes_.size()); }

  void parse_value(std::uint32_t parent, std::string_view name, int depth) {
    skip_space();
    if (depth == kMaxDepth) throw_at(at_, cat("more than ", kMaxDepth, " values within each other"));
    const std::uint32_t index = next_index();
    JsonNode& made = document_.nodes_.emplace_back();
    made.name = name;
    made.offset = static_cast<std::uint32_t>(at_);
    made.parent = parent;
    switch (peek()) {
      case '{':
        parse_object(index, depth);
        break;
      case '[':
        parse_array(index, depth);
        break;
      case '"':
        made.type = Json::Type::string;
        made.string = parse_string();
        break;
      case 't':
        parse_word("true");
        made.type = Json::Type::boolean;
        made.boolean = true;
        break;
      case 'f':
        parse_word("false");
        made.type = Json::Type::boolean;
        made.boolean = false;
        break;
      case 'n':
        parse_word("null");
        break;
      default:
        parse_number(made);
    }
    node(index).after = next_index();
  }

  // NaN and Infinity, which some programs write, are no JSON.
  [[noreturn]] void fail_value(const JsonNode& value) const {
    throw_at(at_, cat(value.name.empty() ? "" : cat(excerpt(value.name), ": "), "expected a value, found ", found()));
  }

  void parse_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) fail("a value");
    at_ += word.size();
  }

  void parse_array(std::uint32_t index, int depth) {
    ++at_;
    skip_space();
    if (!accept(']')) {
      do {
        parse_value(index, {}, depth + 1);
        skip_space();
      } while (accept(','));
      if (!accept(']')) fail("',' or ']'");
    }
    node(index).type = Json::Type::array;
    list_children(index);
  }

  void parse_object(std::uint32_t index, int depth) {
    ++at_;
    skip_space();
    if (!accept('}')) {
      do {
        skip_space();
        if (peek() != '"') fail("a name in quotes");
        const std::string_view name = parse_string();
        skip_space();
        if (!accept(':')) fail("':'");
        parse_value(index, name, depth + 1);
        skip_space();
      } while (accept(','));
      if (!accept('}')) fail("',' or '}'");
    }
    node(index).type = Json::Type::object;
    list_children(index);
    sort_by_name(node(index).children);
  }

  void list_children(std::uint32_t index) {
    std::vector<std::uint32_t>& order = document_.order_;
    const auto begin = static_cast<std::uint32_t>(order.size());
    for (std::uint32_t child = index + 1; child < next_index(); child = node(child).after) order.push_back(child);
    node(index).children = {begin, static_cast<std::uint32_t>(order.size()) - begin};
  }

  // So that a name is found by halving, and a name that comes twice is seen.
  void sort_by_name(const JsonNode::Children& children) {
    const auto first = document_.order_.begin() + children.begin;
    const auto last = first + children.count;
    std::sort(first, last, [&](std::uint32_t a, std::uint32_t b) { return node(a).name < node(b).name; });
    const auto same = [&](std::uint32_t a, std::uint32_t b) { return node(a).name == node(b).name; };
    const auto twice = std::adjacent_find(first, last, same);
    if (twice == last) return;
    throw_at(std::max(node(twice[0]).offset, node(twice[1]).offset),
             cat("the object has ", excerpt(node(*twice).name), " twice"));
  }

  // Passes over characters that stand for themselves.
  void skip_plain() {
    while (at_ < text_.size()) {
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"' || c == '\\') return;
      if (c < 0x20) fail("an escape (control characters need one)");
      const Utf8Scan scan = scan_utf8(text_.substr(at_));
      if (scan.state != Utf8Scan::State::valid) fail("UTF-8");
      at_ += scan.length;
    }
  }

  // At a quote. The result is a view of the text or of a string that the document keeps.
  std::string_view parse_string() {
    const std::size_t quote = at_++;
    skip_plain();
    if (peek() == '"') return text_.substr(quote + 1, at_++ - quote - 1);
    std::string& out = document_.unescaped_.emplace_back(text_.substr(quote + 1, at_ - quote - 1));
    while (accept('\\')) {
      append_escape(out);
      const std::size_t begin = at_;
      skip_plain();
      out += text_.substr(begin, at_ - begin);
    }
    if (!accept('"')) throw_at(quote, "the string that begins here has no end");
    return out;
  }

  // After a backslash.
  void append_escape(std::string& out) {
    const int c = peek();
    constexpr std::string_view kEscapes = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    const std::size_t i = c == kEnd ? std::string_view::npos : kEscapes.find(static_cast<char>(c));
    if (i != std::string_view::npos) {
      ++at_;
      out += kMeanings[i];
    } else if (accept('u')) {
      append_utf8(out, parse_code_point());
    } else {
      fail("one of \" \\ / b f n r t u after a backslash");
    }
  }

  // After \u. Two escapes may stand for one character: UTF-16's halves, the higher one first.
  std::uint32_t parse_code_point() {
    const std::size_t begin = at_;
    const std::uint32_t first = parse_hex4();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first < 0xDC00 && accept('\\') && accept('u')) {
      const std::uint32_t second = parse_hex4();
      if (second >= 0xDC00 && second <= 0xDFFF) return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    }
    throw_at(begin - 2, "half of a surrogate pair without the other half");
  }

  std::uint32_t parse_hex4() {
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const int c = peek();
      const int low = c | 0x20;  // upper case to lower case
      if (!is_digit(c) && (low < 'a' || low > 'f')) fail("four hexadecimal digits after \\u");
      value = value * 16 + static_cast<std::uint32_t>(is_digit(c) ? c - '0' : low - 'a' + 10);
    }
    return value;
  }

  void skip_digits() {
    if (!is_digit(peek())) fail("a digit");
    while (is_digit(peek())) ++at_;
  }

  void parse_number(JsonNode& out) {
    const std::size_t begin = at_;
    if (peek() != '-' && !is_digit(peek())) fail_value(out);
    const bool negative = accept('-');
    if (peek() == 'I') fail_value(out);
    if (!accept('0')) skip_digits();  // nothing but a fraction follows a leading zero
    const std::size_t integer_end = at_;
    if (accept('.')) skip_digits();
    if (accept('e') || accept('E')) {
      if (!accept('+')) accept('-');
      skip_digits();
    }
    const std::string_view text = text_.substr(begin, at_ - begin);
    if (at_ == integer_end && set_integer(out, text, negative)) return;
    out.type = Json::Type::number;
    out.number = to_double(text, begin);
  }

  // False for one that takes more than 64 bits, and for -0, which only a double can tell from 0.
  static bool set_integer(JsonNode& out, std::string_view text, bool negative) {
    if (text == "-0") return false;
    const char* const end = text.data() + text.size();
    std::int64_t below_zero = 0;
    const auto parsed =
        negative ? std::from_chars(text.data(), end, below_zero) : std::from_chars(text.data(), end, out.integer);
    if (parsed.ec != std::errc{}) return false;
    if (negative) out.integer = static_cast<std::uint64_t>(below_zero);
    out.negative = negative;
    out.type = Json::Type::integer;
    return true;
  }

  double to_double(std::string_view text, std::size_t begin) const {
    const std::optional<double> value = llama2cpp::parse_number(text);
    if (!value) throw_at(begin, cat("the number ", excerpt(text), " is too large for a double"));
    return *value;
  }

  JsonDocument& document_;
  std::string_view text_;
  std::size_t at_ = 0;
};

JsonDocument::JsonDocument(std::string_view text, std::string name, std::size_t offset)
    : name_(std::move(name)), offset_(offset) {
  JsonParser(*this, text).parse();
}

const JsonNode& Json::node() const { return document_->nodes_[index_]; }

Json::Type Json::type() const { return node().type; }

const JsonNode& Json::expect(Type expected) const {
  if (type() != expected) fail(cat("expected ", describe(expected), ", found ", describe(type())));
  return node();
}

bool Json::boolean() const { return expect(Type::boolean).boolean; }

std::int64_t Json::int64() const {
  const JsonNode& n = expect(Type::integer);
  if (!n.negative && n.integer > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    fail(cat("expected an integer below 2^63, found ", n.integer));
  }
  return static_cast<std::int64_t>(n.integer);
}

std::uint64_t Json::uint64() const {
  const JsonNode& n = expect(Type::integer);
  if (n.negative) fail(cat("expected an integer of 0 or more, found ", static_cast<std::int64_t>(n.integer)));
  return n.integer;
}

double Json::number() const {
  if (type() != Type::integer) return expect(Type::number).number;
  return node().negative ? static_cast<double>(static_cast<std::int64_t>(node().integer))
                         : static_cast<double>(node().integer);
}

std::string_view Json::string() const { return expect(Type::string).string; }

std::size_t Json::size() const {
  if (type() != Type::object) expect(Type::array);
  return node().children.count;
}

Json Json::at(std::size_t index) const {
  const JsonNode::Children& children = expect(Type::array).children;
  if (index >= children.count) fail(cat("expected at least ", index + 1, " elements, found ", children.count));
  return {document_, document_->order_[children.begin + index]};
}

std::optional<Json> Json::member(std::string_view name) const {
  const JsonNode::Children& children = expect(Type::object).children;
  const auto first = document_->order_.begin() + children.begin;
  const auto last = first + children.count;
  const auto found = std::lower_bound(first, last, name, [&](std::uint32_t child, std::string_view wanted) {
    return document_->nodes_[child].name < wanted;
  });
  if (found == last || document_->nodes_[*found].name != name) return std::nullopt;
  return Json(document_, *found);
}

Json Json::get(std::string_view name) const {
  const std::optional<Json> found = member(name);
  if (!found) fail(cat("expected a member ", excerpt(name), ", found none"));
  return *found;
}

std::optional<Json> Json::find(std::string_view name) const {
  const std::optional<Json> found = member(name);
  return found && !found->is_null() ? found : std::nullopt;
}

JsonRange Json::elements() const { return {document_, index_ + 1, expect(Type::array).after}; }

JsonRange Json::members() const { return {document_, index_ + 1, expect(Type::object).after}; }

std::string_view Json::name() const { return node().name; }

std::string Json::path() const {
  if (index_ == 0) return document_->name_;
  const Json parent(document_, node().parent);
  if (parent.type() == Type::array) {
    std::size_t before = 0;
    for (const Json sibling : parent.elements()) before += sibling.index_ < index_ ? 1 : 0;
    return cat(parent.path(), "[", before, "]");
  }
  return is_identifier(name()) ? cat(parent.path(), ".", name()) : cat(parent.path(), "[", excerpt(name()), "]");
}

void Json::fail(std::string_view problem) const {
  throw FormatError(cat(path(), " (byte ", document_->offset_ + node().offset, "): ", problem));
}

JsonRange::Iterator& JsonRange::Iterator::operator++() {
  index_ = document_->nodes_[index_].after;
  return *this;
}

}  // namespace llama2cpp
