// Patterns by themselves: where a match begins and ends. tests/text/test_patterns.py compares them with Oniguruma.
#include <doctest/doctest.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "core/check.h"
#include "text/nfc.h"
#include "text/pattern.h"

using llama2cpp::FormatError;
using llama2cpp::nfc;
using llama2cpp::Pattern;

namespace {

using Span = std::pair<std::size_t, std::size_t>;
constexpr std::uint64_t kMuch = 1 << 20;

std::optional<Span> find(std::string_view pattern, std::string_view text, std::size_t from = 0) {
  Pattern::Budget budget{kMuch};
  const auto match = Pattern(pattern).find(text, from, budget);
  if (!match) return {};
  return Span{match->begin, match->end};
}

}  // namespace

TEST_CASE("pattern: the leftmost match, by the earlier alternative") {
  CHECK(find("a|ab", "xab") == Span{1, 2});
  CHECK(find("ab|a", "xab") == Span{1, 3});
  CHECK(find("(a|ab)(c|bcd)?", "abcd") == Span{0, 4});
  CHECK(find("a*?b|a", "aab") == Span{0, 3});
  CHECK(find("a+?", "aab") == Span{0, 1});
  CHECK(find("b", "aa") == std::nullopt);
  CHECK(find("b*", "ab") == Span{0, 0});
  CHECK(find("b*", "ab", 1) == Span{1, 2});
  CHECK(find("b*", "ab", 2) == Span{2, 2});
}

TEST_CASE("pattern: what comes next") {
  CHECK(find("\\s+(?!\\S)", "   x") == Span{0, 2});
  CHECK(find("\\s+(?!\\S)", "   ") == Span{0, 3});
  CHECK(find("\\s+(?!\\S)|\\s", " x") == Span{0, 1});
  CHECK(find("a(?=b)", "aab") == Span{1, 2});
  CHECK(find("\\s+$", "a  b  ") == Span{4, 6});
  CHECK(find("a++b", "aab") == Span{0, 3});
  CHECK(find("a?+ab", "ab") == std::nullopt);
}

TEST_CASE("pattern: bytes that are no character are of no class") {
  CHECK(find("\\p{L}+|[^\\s\\p{L}]+", "\xFF\xC3\xA9") == Span{0, 1});
  CHECK(find("\\p{L}", "\xE2\x82\xC3\xA9") == Span{2, 4});
  CHECK(find(".", "\n\xF0\x9F\x9A\x80") == Span{1, 5});
}

TEST_CASE("pattern: searches have a budget, and runs of one class cost little of it") {
  const std::string spaces(100'000, ' ');
  Pattern::Budget budget{kMuch};
  CHECK_FALSE(Pattern("\\s+$").find(spaces + "x", 0, budget));
  CHECK(kMuch - budget.left < 300'000);
  std::string letters;
  for (int i = 0; i < 5'000; ++i) letters += "ab";
  CHECK_THROWS_AS(Pattern("[ab]a[ab]*c|[ab]b[ab]*d").find(letters, 0, budget), std::invalid_argument);
}

TEST_CASE("pattern: a table that would not fit is refused") {
  CHECK_THROWS_AS(Pattern("(a|b)*a(a|b){20}"), FormatError);
  CHECK_THROWS_AS(Pattern("((a{100}){100}){100}"), FormatError);
}

TEST_CASE("nfc") {
  CHECK(nfc("e\xCC\x81") == "\xC3\xA9");
  CHECK(nfc("e\xCC\x81\xFF") == "\xC3\xA9\xFF");
  CHECK(nfc("a\xCC\x81\xCC\xA3") == "\xE1\xBA\xA1\xCC\x81");             // below before above
  CHECK(nfc("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8") == "\xEA\xB0\x81");  // Hangul of three
  CHECK(nfc("\xE2\x84\xAB") == "\xC3\x85");                              // the sign for angstrom is a letter
  CHECK(nfc("plain") == "plain");
}
