#include "text/pattern.h"

#include <algorithm>
#include <bit>
#include <map>
#include <utility>

#include "core/check.h"
#include "core/quote.h"
#include "text/pattern_syntax.h"

namespace llama2cpp {
namespace {

using Kind = PatternNode::Kind;

constexpr std::size_t kMostPlaces = 1 << 13;
constexpr std::size_t kMostEntries = 1 << 19;
constexpr std::size_t kMostSteps = 1 << 25;         // of building the table
constexpr std::uint8_t kWide = CodeClasses::kMost;  // no class: they are fewer
constexpr std::size_t kNone = static_cast<std::size_t>(-1);

[[noreturn]] void fail_too_large() { throw FormatError(" is too large: its table would take too much memory"); }

// A place in the pattern.
struct Place {
  enum class What : std::uint8_t { take, look, split, match };
  What what = What::match;
  std::uint32_t set = 0;   // take, look
  bool at_end = false;     // look
  std::uint32_t next = 0;  // split: the one that is tried first
  std::uint32_t other = 0;
};

class Places {
 public:
  explicit Places(const PatternNode& root) { start_ = add(root, put({})); }

  const std::vector<Place>& all() const { return all_; }
  std::uint32_t start() const { return start_; }

 private:
  std::uint32_t put(const Place& place) {
    if (all_.size() == kMostPlaces) fail_too_large();
    all_.push_back(place);
    return static_cast<std::uint32_t>(all_.size() - 1);
  }

  std::uint32_t put_split(bool lazy, std::uint32_t body, std::uint32_t next) {
    return put({Place::What::split, 0, false, lazy ? next : body, lazy ? body : next});
  }

  // The place where the node begins, if what follows it begins at `next`.
  std::uint32_t add(const PatternNode& node, std::uint32_t next) {
    switch (node.kind) {
      case Kind::set:
        return put({Place::What::take, node.set, false, next, 0});
      case Kind::ahead:
        return put({Place::What::look, node.set, node.at_end, next, 0});
      case Kind::sequence:
        for (std::size_t i = node.children.size(); i-- > 0;) next = add(node.children[i], next);
        return next;
      case Kind::choice: {
        std::uint32_t begin = add(node.children.back(), next);
        for (std::size_t i = node.children.size() - 1; i-- > 0;) {
          begin = put({Place::What::split, 0, false, add(node.children[i], next), begin});
        }
        return begin;
      }
      case Kind::repeat:
        break;
    }
    const PatternNode& child = node.children[0];
    std::uint32_t begin = next;
    std::uint32_t left = node.min;
    if (node.max == PatternNode::kNoMost) {
      const std::uint32_t loop = put_split(node.lazy, next, next);
      const std::uint32_t body = add(child, loop);
      (node.lazy ? all_[loop].other : all_[loop].next) = body;
      begin = left > 0 ? body : loop;
      left -= left > 0 ? 1 : 0;
    } else {
      for (std::uint32_t i = node.min; i < node.max; ++i) begin = put_split(node.lazy, add(child, begin), next);
    }
    for (; left > 0; --left) begin = add(child, begin);
    return begin;
  }

  std::vector<Place> all_;
  std::uint32_t start_ = 0;
};

// Builds the states that can be reached.
class Table {
 public:
  Table(const Places& places, const CodeClasses& classes) : places_(places.all()), classes_(classes) {
    stride_ = std::bit_ceil(classes.size() + 1);
    follow({});  // row 0, which is the end
    start_ = follow({places.start()});
    for (std::size_t state = 1; state < states_.size(); ++state) {
      for (std::size_t cls = 0; cls <= classes.size(); ++cls) step(state, cls);
    }
  }

  std::vector<std::uint32_t> take() { return std::move(entries_); }
  std::uint32_t start() const { return start_; }

 private:
  using State = std::vector<std::uint32_t>;  // places, the preferred one first

  std::uint32_t follow(State state) {
    const auto found = numbers_.find(state);
    if (found != numbers_.end()) return found->second;
    const auto row = static_cast<std::uint32_t>(entries_.size());
    if (entries_.size() + stride_ > kMostEntries) fail_too_large();
    entries_.resize(entries_.size() + stride_);
    numbers_.emplace(state, row);
    states_.push_back(std::move(state));
    return row;
  }

  // Follows all places of a state over one character, or over the end of the text.
  void step(std::size_t state, std::size_t cls) {
    const bool end = cls == classes_.size();
    std::vector<bool> seen(places_.size());
    std::vector<bool> taken(places_.size());
    State next;
    bool match = false;
    std::vector<std::uint32_t> stack(states_[state].rbegin(), states_[state].rend());
    while (!stack.empty() && !match) {
      const std::uint32_t at = stack.back();
      stack.pop_back();
      if (seen[at]) continue;
      seen[at] = true;
      if (++steps_ > kMostSteps) fail_too_large();
      const Place& place = places_[at];
      const bool in_set = !end && classes_.in_set(cls, place.set);
      switch (place.what) {
        case Place::What::take:
          if (!in_set || taken[place.next]) break;
          taken[place.next] = true;
          next.push_back(place.next);
          break;
        case Place::What::look:
          if (end ? place.at_end : in_set) stack.push_back(place.next);
          break;
        case Place::What::split:
          stack.push_back(place.other);
          stack.push_back(place.next);
          break;
        case Place::What::match:
          match = true;  // what is not preferred to it is not followed
          break;
      }
    }
    steps_ += places_.size() / 64;
    const std::uint32_t row = follow(std::move(next));
    entries_[state * stride_ + cls] = row << 1 | (match ? 1U : 0U);
  }

  const std::vector<Place>& places_;
  const CodeClasses& classes_;
  std::size_t stride_ = 0;
  std::size_t steps_ = 0;
  std::vector<State> states_;
  std::map<State, std::uint32_t> numbers_;  // the row of each
  std::vector<std::uint32_t> entries_;      // [state][class]
  std::uint32_t start_ = 0;
};

}  // namespace

Pattern::Pattern(std::string_view pattern) : Pattern(pattern, read_pattern(pattern)) {}

Pattern::Pattern(std::string_view pattern, const PatternTree& tree)
    : classes_(tree.sets), end_(static_cast<std::uint32_t>(classes_.size())) {
  try {
    const Places places(tree.root);
    Table table(places, classes_);
    start_ = table.start();
    table_ = table.take();
    class_of_byte_.fill(kWide);
    for (std::uint8_t byte = 0; byte < 0x80; ++byte) {
      class_of_byte_[byte] = classes_.of_ascii(byte);
      passes_[byte] = table_[start_ + class_of_byte_[byte]] == 0;
    }
  } catch (const FormatError& error) {
    throw FormatError(cat("the pattern ", excerpt(pattern), error.what()));
  }
}

bool Pattern::may_begin_with(std::uint8_t byte) const {
  if (table_[start_ + end_] != 0) return true;
  if (byte < 0x80) return !passes_[byte];
  const auto begins = [&](std::uint8_t cls) { return table_[start_ + cls] != 0; };
  if (begins(classes_.of(kNoCode))) return true;
  std::uint32_t length = 0x40;  // of the range of code points that the byte leads
  std::uint32_t first = (byte & 0x1FU) * length;
  if (byte >= 0xE0) {
    length = byte < 0xF0 ? 0x1000 : 0x40000;
    first = (byte & (byte < 0xF0 ? 0xFU : 7U)) * length;
  }
  if (byte < 0xC0 || first >= kNoCode) return false;
  return classes_.any_of(first, std::min(first + length, kNoCode), begins);
}

CodePoint Pattern::wide_symbol_at(std::string_view text, std::size_t at) const {
  const CodePoint point = decode(text.substr(at));
  return {classes_.of(point.code), point.length};
}

CodePoint Pattern::symbol_at(std::string_view text, std::size_t at) const {
  if (at == text.size()) return {end_, 0};
  const std::uint8_t cls = class_of_byte_[static_cast<std::uint8_t>(text[at])];
  return cls == kWide ? wide_symbol_at(text, at) : CodePoint{cls, 1};
}

std::size_t Pattern::first_wide_begin(std::string_view text, std::size_t at) const {
  while (at < text.size()) {
    const CodePoint symbol = symbol_at(text, at);
    if (table_[start_ + symbol.code] != 0) break;
    at += symbol.length;
  }
  return at;
}

Pattern::Run Pattern::run(std::string_view text, std::size_t at) const {
  const Entry* const table = table_.data();
  const std::uint8_t* const class_of_byte = class_of_byte_.data();
  const char* const bytes = text.data();
  const std::size_t size = text.size();
  std::size_t end = kNone;
  std::uint32_t row = start_;
  while (at < size) {
    std::uint32_t cls = class_of_byte[static_cast<std::uint8_t>(bytes[at])];
    std::uint32_t length = 1;
    if (cls == kWide) {
      const CodePoint symbol = wide_symbol_at(text, at);
      cls = symbol.code;
      length = symbol.length;
    }
    const Entry entry = table[row + cls];
    if ((entry & 1) != 0) end = at;
    const std::uint32_t next = entry >> 1;
    if (next == 0) return {end, at};
    at += length;
    if (next == row) {  // more of the class change nothing: the letters of a word
      const std::size_t second = at;
      while (at < size && class_of_byte[static_cast<std::uint8_t>(bytes[at])] == cls) ++at;
      if ((entry & 1) != 0 && at > second) end = at - 1;
    }
    row = next;
  }
  if ((table[row + end_] & 1) != 0) end = size;
  return {end, size};
}

std::optional<Pattern::Match> Pattern::find(std::string_view text, std::size_t from, Budget& budget) const {
  for (std::size_t at = from; at <= text.size();) {
    at = first_begin(text, at);
    const Run found = run(text, at);
    const std::uint64_t scanned = found.scanned - at + 1;
    LLAMA2CPP_CHECK(scanned <= budget.left,
                    "a pattern of the tokenizer takes too long to cut this text into words: it looks at each character "
                    "again and again");
    budget.left -= scanned;
    if (found.end != kNone) return Match{at, found.end};
    if (at == text.size()) break;
    // Where the next character leads from the start to where it has led from here, a match that begins with it fails too:
    // else a run of spaces before what is none would be looked through once for each of them.
    const CodePoint first = symbol_at(text, at);
    at += first.length;
    if (found.scanned <= at) continue;  // it has not looked beyond the second
    Entry second = table_[(table_[start_ + first.code] >> 1) + symbol_at(text, at).code];
    while (at < text.size()) {
      const CodePoint next = symbol_at(text, at);
      const Entry entry = table_[start_ + next.code];
      if (entry != second) break;
      at += next.length;
      second = table_[(entry >> 1) + symbol_at(text, at).code];
      if ((second >> 1) == 0) break;
    }
  }
  return {};
}

}  // namespace llama2cpp
