#include "text/pattern_syntax.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "core/check.h"
#include "core/quote.h"

namespace llama2cpp {
namespace {

using Kind = PatternNode::Kind;

constexpr std::uint32_t kMostTimes = 1000;  // that a repetition can count to
constexpr int kDeepest = 100;               // groups in groups
constexpr int kMostUpon = 8;                // repetitions of repetitions
constexpr std::size_t kLongest = 1 << 16;   // bytes

bool is_ascii_letter(std::uint32_t code) { return (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z'); }

// Whether a match may be empty.
bool may_be_empty(const PatternNode& node) {
  switch (node.kind) {
    case Kind::set:
      return false;
    case Kind::ahead:
      return true;
    case Kind::sequence:
      return std::all_of(node.children.begin(), node.children.end(), may_be_empty);
    case Kind::choice:
      return std::any_of(node.children.begin(), node.children.end(), may_be_empty);
    case Kind::repeat:
      break;
  }
  return node.min == 0 || may_be_empty(node.children[0]);
}

class Parser {
 public:
  explicit Parser(std::string_view pattern) : pattern_(pattern) {
    if (pattern.size() > kLongest) throw FormatError(cat("a pattern of ", pattern.size(), " bytes is not implemented"));
    if (utf8_valid_bytes(pattern) != pattern.size()) throw FormatError("a pattern has bytes that are not UTF-8");
  }

  PatternTree read() {
    tree_.root = read_choice();
    if (!at_end()) fail("a ) without its (");
    return std::move(tree_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw FormatError(cat("the pattern ", excerpt(pattern_), " has, at byte ", at_, ", ", what));
  }
  [[noreturn]] void refuse(std::string_view what) const { fail(cat(what, ", which is not implemented")); }

  bool at_end() const { return at_ == pattern_.size(); }
  bool next_is(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  bool take(std::string_view text) {
    if (!next_is(text)) return false;
    at_ += text.size();
    return true;
  }

  std::uint32_t take_code() {
    if (at_end()) fail("an end in the middle");
    const CodePoint point = decode(pattern_.substr(at_));
    at_ += point.length;
    return point.code;
  }

  PatternNode node_of(const CodeSet& set, Kind kind = Kind::set) {
    const auto found = std::find(tree_.sets.begin(), tree_.sets.end(), set);
    PatternNode node;
    node.kind = kind;
    node.set = static_cast<std::uint32_t>(found - tree_.sets.begin());
    if (found == tree_.sets.end()) {
      if (tree_.sets.size() == CodeClasses::kMostSets) refuse("more different sets and characters than 256");
      tree_.sets.push_back(set);
    }
    return node;
  }

  // With (?i: a letter is both, and what else Unicode folds to it: the long s and the Kelvin sign.
  CodeSet folded(const CodeSet& set) const {
    if (!any_case_) return set;
    std::vector<CodeSet::Run> runs(set.runs().begin(), set.runs().end());
    for (std::uint32_t lower = 'a'; lower <= 'z'; ++lower) {
      const std::uint32_t upper = lower - 'a' + 'A';
      if (!set.contains(lower) && !set.contains(upper)) continue;
      runs.emplace_back(lower, lower + 1);
      runs.emplace_back(upper, upper + 1);
      if (lower == 's') runs.emplace_back(0x17F, 0x180);
      if (lower == 'k') runs.emplace_back(0x212A, 0x212B);
    }
    return CodeSet(std::move(runs));
  }

  void check_case(std::uint32_t code) const {
    if (any_case_ && code >= 0x80) refuse("a character that is not ASCII in (?i:...)");
  }

  PatternNode read_choice() {
    if (++depth_ > kDeepest) fail("groups in groups, deeper than is implemented");
    PatternNode choice;
    choice.kind = Kind::choice;
    do {
      choice.children.push_back(read_sequence());
    } while (take("|"));
    --depth_;
    return choice.children.size() == 1 ? std::move(choice.children[0]) : choice;
  }

  PatternNode read_sequence() {
    PatternNode sequence;
    std::uint32_t letter_before = 0;
    while (!at_end() && !next_is("|") && !next_is(")")) {
      const std::uint32_t letter = any_case_ ? decode(pattern_.substr(at_)).code | 0x20U : 0;
      refuse_ligatures(letter_before, letter);
      letter_before = letter;
      sequence.children.push_back(read_repeated());
    }
    return sequence.children.size() == 1 ? std::move(sequence.children[0]) : sequence;
  }

  // Oniguruma finds "ß" for (?i:ss), and characters that are two letters in one.
  void refuse_ligatures(std::uint32_t first, std::uint32_t second) const {
    for (const std::string_view pair : {"ss", "st", "ff", "fi", "fl"}) {
      if (first == static_cast<std::uint32_t>(pair[0]) && second == static_cast<std::uint32_t>(pair[1])) {
        refuse(cat("\"", pair, "\" in (?i:...)"));
      }
    }
  }

  PatternNode read_repeated() {
    PatternNode node = read_one();
    for (int upon = 0; !at_end(); ++upon) {
      std::uint32_t min = 0;
      std::uint32_t max = PatternNode::kNoMost;
      bool interval = false;
      if (take("?")) {
        max = 1;
      } else if (take("+")) {
        min = 1;
      } else if (next_is("{")) {
        interval = true;
        read_interval(min, max);
      } else if (!take("*")) {
        break;
      }
      if (upon == kMostUpon) refuse("a repetition of repetitions, many times");
      if (node.kind == Kind::ahead) fail("a repetition of what is nothing");
      if (max > 1 && may_be_empty(node)) refuse("a repetition of what may be nothing");

      const bool single = node.kind == Kind::set;
      const CodeSet set = single ? tree_.sets[node.set] : CodeSet();
      PatternNode repeat;
      repeat.kind = Kind::repeat;
      repeat.min = min;
      repeat.max = max;
      repeat.children.push_back(std::move(node));
      if (take("?")) {
        if (interval && min == max) {  // optional, to Oniguruma
          PatternNode optional;
          optional.kind = Kind::repeat;
          optional.max = 1;
          optional.children.push_back(std::move(repeat));
          node = std::move(optional);
          continue;
        }
        repeat.lazy = true;
        node = std::move(repeat);
      } else if (!interval && take("+")) {
        if (!single) refuse("a possessive repetition of more than one character");
        node = possessive(std::move(repeat), set);
      } else {
        node = std::move(repeat);
      }
    }
    return node;
  }

  // As many as there are: what comes next is no more of them, if there could be.
  PatternNode possessive(PatternNode repeat, const CodeSet& set) {
    PatternNode no_more = node_of(set.inverted(), Kind::ahead);
    no_more.at_end = true;
    PatternNode node;
    if (repeat.max == 1) {
      node.kind = Kind::choice;
      node.children.push_back(std::move(repeat.children[0]));
      node.children.push_back(std::move(no_more));
    } else {
      node.children.push_back(std::move(repeat));
      node.children.push_back(std::move(no_more));
    }
    return node;
  }

  std::optional<std::uint32_t> take_number() {
    std::optional<std::uint32_t> number;
    while (!at_end() && pattern_[at_] >= '0' && pattern_[at_] <= '9') {
      number = 10 * number.value_or(0) + static_cast<std::uint32_t>(pattern_[at_++] - '0');
      if (*number > kMostTimes) refuse(cat("a repetition of more than ", kMostTimes, " times"));
    }
    return number;
  }

  // {n} {n,} {n,m} {,m}
  void read_interval(std::uint32_t& min, std::uint32_t& max) {
    take("{");
    const std::optional<std::uint32_t> first = take_number();
    std::optional<std::uint32_t> last = first;
    if (take(",")) last = take_number();
    if (!take("}") || (!first && !last)) fail("a { that is no repetition (\\{ is the character)");
    min = first.value_or(0);
    max = last.value_or(PatternNode::kNoMost);
    if (max < min || max == 0) refuse("a repetition from more to less, or of 0 times");
  }

  PatternNode read_one() {
    if (take("(")) return read_group();
    if (next_is("[")) return node_of(read_set());
    if (take(".")) return node_of(CodeSet::one('\n').inverted());
    if (take("$")) {
      PatternNode end = node_of(CodeSet::one('\n'), Kind::ahead);
      end.at_end = true;
      return end;
    }
    if (next_is("^")) refuse("^");
    for (const std::string_view sign : {"*", "+", "?"}) {
      if (next_is(sign)) fail(cat("a ", sign, " without what it repeats"));
    }
    if (next_is("\\")) return node_of(folded(read_escape()));
    const std::uint32_t code = take_code();
    check_case(code);
    return node_of(folded(CodeSet::one(code)));
  }

  PatternNode read_group() {
    const bool outer_case = any_case_;
    bool ahead = false;
    bool negated = false;
    if (take("?")) {
      if (take("i:")) {
        any_case_ = true;
      } else if (take("=") || next_is("!")) {
        negated = take("!");
        ahead = true;
      } else if (!take(":")) {
        refuse(cat("a group that begins with (?", pattern_.substr(at_, 1)));
      }
    }
    PatternNode inner = read_choice();
    if (!take(")")) fail("a ( without its )");
    any_case_ = outer_case;
    return ahead ? read_ahead(inner, negated) : inner;
  }

  PatternNode read_ahead(const PatternNode& inner, bool negated) {
    CodeSet set;
    bool at_end = false;
    const std::vector<PatternNode> one = {inner};
    for (const PatternNode& node : inner.kind == Kind::choice ? inner.children : one) {
      if (node.kind != Kind::set && node.kind != Kind::ahead) refuse("a lookahead for more than one character");
      set = set.united(tree_.sets[node.set]);
      at_end = at_end || node.at_end;
    }
    PatternNode ahead = node_of(negated ? set.inverted() : set, Kind::ahead);
    ahead.at_end = at_end != negated;
    return ahead;
  }

  // [...], up to the bracket that ends it
  CodeSet read_set() {
    if (++depth_ > kDeepest) fail("sets in sets, deeper than is implemented");
    take("[");
    if (next_is(":")) refuse("[:...:]");
    const bool negated = take("^");
    std::optional<CodeSet> both;  // what comes before a &&
    std::vector<CodeSet::Run> runs;
    bool empty = true;
    while (!next_is("]")) {
      if (at_end()) fail("a [ without its ]");
      if (take("&&")) {
        const CodeSet before(std::exchange(runs, {}));
        both = both ? both->intersected(before) : before;
        empty = false;
        continue;
      }
      const CodeSet part = read_set_part(empty);
      runs.insert(runs.end(), part.runs().begin(), part.runs().end());
      empty = false;
    }
    if (empty) refuse("a set that begins with ]");
    take("]");
    CodeSet set(std::move(runs));
    if (both) set = both->intersected(set);
    --depth_;
    return negated ? set.inverted() : set;
  }

  CodeSet read_set_part(bool first) {
    if (next_is("[")) return read_set();
    std::optional<std::uint32_t> begin;
    CodeSet set;
    const bool dash = next_is("-");
    if (next_is("\\")) {
      set = read_escape();
      if (set.runs().size() == 1 && set.runs()[0].second == set.runs()[0].first + 1) begin = set.runs()[0].first;
    } else {
      begin = take_code();
      check_case(*begin);
      set = CodeSet::one(*begin);
    }
    if (dash && !first && !next_is("]")) refuse("a - in a set that is neither its first nor its last (\\- is one)");
    if (!next_is("-") || pattern_.substr(at_).starts_with("-]")) return folded(set);
    if (!begin) refuse("a range from a class");
    take("-");
    if (next_is("[") || next_is("&&")) refuse("a - in a set that is neither its first nor its last (\\- is one)");
    std::uint32_t end = 0;
    if (next_is("\\")) {
      const CodeSet last = read_escape();
      if (last.runs().size() != 1 || last.runs()[0].second != last.runs()[0].first + 1) refuse("a range to a class");
      end = last.runs()[0].first;
    } else {
      end = take_code();
      check_case(end);
    }
    if (end < *begin) fail("a range from more to less");
    return folded(CodeSet({{*begin, end + 1}}));
  }

  // Behind a backslash. Classes are never folded.
  CodeSet read_escape() {
    take("\\");
    if (at_end()) fail("a \\ at its end");
    const char c = pattern_[at_];
    if (static_cast<unsigned char>(c) >= 0x80) refuse("a \\ before a character that is not ASCII");
    ++at_;
    switch (c) {
      case 'r':
        return CodeSet::one('\r');
      case 'n':
        return CodeSet::one('\n');
      case 't':
        return CodeSet::one('\t');
      case 'f':
        return CodeSet::one('\f');
      case 'v':
        return CodeSet::one('\v');
      case 'a':
        return CodeSet::one('\a');
      case 'e':
        return CodeSet::one(0x1B);
      case 's':
        return CodeSet::white_space();
      case 'S':
        return CodeSet::white_space().inverted();
      case 'd':
        return *CodeSet::category("Nd");
      case 'D':
        return CodeSet::category("Nd")->inverted();
      case 'p':
      case 'P':
        return read_property(c == 'P');
      case 'x':
        return CodeSet::one(read_hexadecimal(2));
      case 'u':
        return CodeSet::one(read_hexadecimal(4));
      default:
        break;
    }
    if (is_ascii_letter(static_cast<std::uint32_t>(c)) || (c >= '0' && c <= '9')) {
      --at_;
      refuse(cat("\\", c));
    }
    return CodeSet::one(static_cast<std::uint32_t>(c));
  }

  std::uint32_t read_hexadecimal(std::size_t digits) {
    const bool braces = digits == 2 && take("{");
    std::uint32_t code = 0;
    std::size_t count = 0;
    const auto value = [](char c) {
      if (c >= '0' && c <= '9') return c - '0';
      if (c >= 'a' && c <= 'f') return c - 'a' + 10;
      return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    for (; !at_end() && count < (braces ? 8 : digits) && value(pattern_[at_]) >= 0; ++count, ++at_) {
      if (code > 0xFFFFFF) fail("a code point that is none");
      code = code << 4 | static_cast<std::uint32_t>(value(pattern_[at_]));
    }
    if (count == 0 || (braces ? !take("}") : count != digits)) fail("a code point that is not written in full");
    if (code >= kNoCode || (code >= 0xD800 && code < 0xE000)) fail("a code point that is none");
    if (digits == 2 && !braces && code >= 0x80) refuse("\\x for a byte of a character");
    check_case(code);
    return code;
  }

  // {L} {^L}
  CodeSet read_property(bool negated) {
    const std::size_t end = pattern_.find('}', at_);
    if (!next_is("{") || end == std::string_view::npos) fail("a \\p without the name of a general category in { }");
    std::string_view name = pattern_.substr(at_ + 1, end - at_ - 1);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    const std::optional<CodeSet> set = CodeSet::category(name);
    if (!set) refuse(cat("\\p of ", excerpt(name)));
    if (any_case_) refuse("a \\p{...} in (?i:...)");
    at_ = end + 1;
    return negated ? set->inverted() : *set;
  }

  std::string_view pattern_;
  std::size_t at_ = 0;
  bool any_case_ = false;
  int depth_ = 0;
  PatternTree tree_;
};

}  // namespace

PatternTree read_pattern(std::string_view pattern) { return Parser(pattern).read(); }

}  // namespace llama2cpp
