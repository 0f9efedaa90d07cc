// The parts of the tokenizer that Python does not see, each against a plain form of itself or the C library.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/utf8.h"
#include "text/piece_table.h"
#include "text/prefix_matcher.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

using llama2cpp::FormatError;
using llama2cpp::PieceTable;
using llama2cpp::PieceType;
using llama2cpp::PrefixMatcher;
using llama2cpp::scan_utf8;
using llama2cpp::StreamDecoder;
using llama2cpp::Tokenizer;
using llama2cpp::Utf8Scan;
using llama2cpp::Utf8Stream;
using llama2cpp::Vocabulary;

namespace {

using Random = std::mt19937;

std::size_t below(Random& random, std::size_t end) { return random() % end; }

std::string random_string(Random& random, std::string_view alphabet, std::size_t longest) {
  std::string text(below(random, longest + 1), ' ');
  for (char& c : text) c = alphabet[below(random, alphabet.size())];
  return text;
}

std::string utf8_of(unsigned code) {
  const auto tail = [code](unsigned shift) { return static_cast<char>(0x80 | (code >> shift & 0x3F)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xC0 | code >> 6), tail(0)};
  if (code < 0x10000) return {static_cast<char>(0xE0 | code >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | code >> 18), tail(12), tail(6), tail(0)};
}

std::vector<float>& scores_of(Vocabulary& vocabulary) { return *find_scores(vocabulary); }

Vocabulary vocabulary_of(std::vector<std::string> pieces) {
  Vocabulary vocabulary;
  vocabulary.pieces = {"<unk>", "\n<s>\n", "\n</s>\n"};
  vocabulary.types = {PieceType::unknown, PieceType::control, PieceType::control};
  for (std::string& piece : pieces) {
    vocabulary.pieces.push_back(std::move(piece));
    vocabulary.types.push_back(PieceType::normal);
  }
  scores_of(vocabulary).resize(vocabulary.pieces.size());
  return vocabulary;
}

}  // namespace

TEST_CASE("scan_utf8 takes every character and no surrogate") {
  for (unsigned code = 0; code <= 0x10FFFF; ++code) {
    const std::string character = utf8_of(code);
    const Utf8Scan scan = scan_utf8(character + "x");
    const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
    if (surrogate ? scan.state != Utf8Scan::State::invalid || scan.length != 1
                  : scan.state != Utf8Scan::State::valid || scan.length != character.size()) {
      FAIL("code point " << code);
    }
  }
}

TEST_CASE("scan_utf8 tells apart what may still become a character and what may not") {
  // A start is incomplete if and only if some character begins with it.
  std::map<std::string, bool> starts;
  for (unsigned code = 0; code <= 0x10FFFF; ++code) {
    if (code >= 0xD800 && code <= 0xDFFF) continue;
    const std::string character = utf8_of(code);
    if (character.size() > 1) starts[character.substr(0, 1)] = true;
    if (character.size() > 2) starts[character.substr(0, 2)] = true;
  }
  for (int first = 0x80; first < 0x100; ++first) {
    const std::string one = {static_cast<char>(first)};
    if ((scan_utf8(one).state == Utf8Scan::State::incomplete) != starts.contains(one)) FAIL("byte " << first);
    for (int second = 0; second < 0x100; ++second) {
      const std::string two = one + static_cast<char>(second);
      const Utf8Scan scan = scan_utf8(two);
      if ((scan.state == Utf8Scan::State::incomplete) != starts.contains(two)) FAIL(first << " " << second);
      if (scan.state == Utf8Scan::State::invalid && scan.length != 1) FAIL(first << " " << second);
    }
  }
}

TEST_CASE("Utf8Stream gives the same text whatever the parts") {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const std::string bytes = random_string(random, "a\x80\xBF\xC3\xE0\xA0\xED\x9F\xF0\x90\xF4\x8F\xFF", 20);
    Utf8Stream whole;
    std::string expected = whole.push(bytes);
    expected += whole.flush();

    Utf8Stream stream;
    std::string text;
    for (std::size_t at = 0; at < bytes.size();) {
      const std::size_t length = 1 + below(random, 4);
      text += stream.push(std::string_view(bytes).substr(at, length));
      at += length;
    }
    text += stream.flush();
    REQUIRE(text == expected);
    REQUIRE(stream.flush().empty());
  }
}

TEST_CASE("PieceTable is a map that keeps the first of equal pieces") {
  Random random(2);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> pieces(below(random, 60));
    for (std::string& piece : pieces) piece = random_string(random, std::string_view("ab\0\xFF", 4), 12);
    PieceTable table(pieces.size());
    std::map<std::string, std::int32_t> plain;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      table.insert(pieces[i], static_cast<std::int32_t>(i));
      plain.emplace(pieces[i], static_cast<std::int32_t>(i));
    }
    for (int question = 0; question < 100; ++question) {
      const std::string text = random_string(random, std::string_view("ab\0\xFF", 4), 13);
      const auto found = plain.find(text);
      REQUIRE(table.find(text) == (found == plain.end() ? -1 : found->second));
    }
    for (const std::string& piece : pieces) REQUIRE(table.find(piece) == plain.at(piece));
    for (const char a : {'a', 'b', '\0', '\xFF', 'c'}) {
      for (const char b : {'a', 'b', '\0', '\xFF', 'c'}) {
        const std::string pair = {a, b};
        const bool inside = std::any_of(pieces.begin(), pieces.end(), [&](const std::string& piece) {
          return piece.find(pair) != std::string::npos;
        });
        REQUIRE(table.has_pair(a, b) == inside);
      }
    }
  }
  CHECK(PieceTable().find("") == -1);
}

TEST_CASE("PrefixMatcher finds the longest") {
  Random random(3);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::pair<std::string, std::int32_t>> strings;
    for (std::int32_t id = 0; id < 20; ++id) strings.emplace_back(random_string(random, "ab\xFF", 6), id);
    const PrefixMatcher matcher(strings);
    for (int question = 0; question < 20; ++question) {
      const std::string text = random_string(random, "ab\xFF", 8);
      PrefixMatcher::Match expected;
      for (const auto& [string, id] : strings) {
        if (text.starts_with(string) && string.size() > expected.length) expected = {id, string.size()};
      }
      const PrefixMatcher::Match match = matcher.longest_prefix(text);
      REQUIRE(match.id == expected.id);
      REQUIRE(match.length == expected.length);
    }
  }
  CHECK(PrefixMatcher().longest_prefix("a").id == -1);
}

TEST_CASE("piece_after reads a byte where the C library's scanf does") {
  Random random(4);
  for (int round = 0; round < 20000; ++round) {
    // No "x" among the digits: libraries differ in whether "0x" by itself is a number.
    const std::string piece = "<0x" + random_string(random, "0149aAfFg>+- \t\n\v\f\r", 6);
    unsigned char byte = 0;
    std::string expected = piece;
    if (std::sscanf(piece.c_str(), "<0x%02hhX>", &byte) == 1) {
      expected = byte == 0 ? std::string() : std::string(1, static_cast<char>(byte));
    }
    const Tokenizer tokenizer(vocabulary_of({piece, " " + piece}));
    CAPTURE(piece);
    REQUIRE(tokenizer.piece_after(-1, 3) == expected);
    REQUIRE(tokenizer.piece_after(1, 4) == expected);
    REQUIRE(tokenizer.piece_after(0, 4) == " " + piece);
  }
}

TEST_CASE("a StreamDecoder and a copy outlive the tokenizer that they come from") {
  auto tokenizer = std::make_unique<Tokenizer>(vocabulary_of({" a", "\xC3", "\xA9"}));
  StreamDecoder decoder(*tokenizer);
  const Tokenizer moved = std::move(*tokenizer);
  CHECK(tokenizer->vocab_size() == 6);  // moved from, and still a tokenizer
  const Tokenizer copy = moved;
  tokenizer.reset();
  CHECK(decoder.push(3) == "a");
  CHECK(decoder.push(4).empty());
  CHECK(decoder.push(5) == "\xC3\xA9");
  const std::vector<std::int32_t> ids = {3, 4, 5};
  CHECK(copy.decode(ids) == "a\xC3\xA9");
}

TEST_CASE("a vocabulary that cannot work is refused") {
  const auto refused = [](auto change) {
    Vocabulary vocabulary = vocabulary_of({"a"});
    change(vocabulary);
    CHECK_THROWS_AS(Tokenizer(std::move(vocabulary)), FormatError);
  };
  refused([](Vocabulary& v) { v = Vocabulary(); });
  refused([](Vocabulary& v) { scores_of(v).pop_back(); });
  refused([](Vocabulary& v) { v.types.pop_back(); });
  refused([](Vocabulary& v) { v.bos_id = 4; });
  refused([](Vocabulary& v) { v.bos_id = -2; });
  refused([](Vocabulary& v) { v.eos_ids = {2, -1}; });
  refused([](Vocabulary& v) { v.unk_id = 4; });
  refused([](Vocabulary& v) { v.types[3] = PieceType::byte; });

  Vocabulary least = vocabulary_of({});
  least.bos_id = least.unk_id = -1;
  least.eos_ids.clear();
  const Tokenizer tokenizer(std::move(least));
  CHECK(tokenizer.encode("", true, true).empty());
  CHECK_THROWS_AS(tokenizer.encode("a", true, true), std::invalid_argument);
}

TEST_CASE("a piece with an empty name and pieces that join it do no harm") {
  // As C strings both are empty: they join anything, and what they join keeps its name.
  Vocabulary vocabulary = vocabulary_of({});
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.pieces.push_back(byte == 'x' ? std::string("\0y", 2) : std::string(1, static_cast<char>(byte)) + "z");
    vocabulary.types.push_back(PieceType::normal);
    scores_of(vocabulary).push_back(0.0f);
  }
  const Tokenizer tokenizer(std::move(vocabulary));
  const std::vector<std::int32_t> expected = {3 + ' ', 3 + 'a'};
  CHECK(tokenizer.encode("xaxx", false, false) == expected);
}
