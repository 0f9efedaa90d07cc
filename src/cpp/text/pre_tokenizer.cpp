#include "text/pre_tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "core/utf8.h"

namespace llama2cpp {
namespace {

#include "text/unicode_tables.inc"

enum class Class : std::uint8_t { other, letter, number, space };

Class class_of(std::uint32_t code) {
  const std::size_t word = std::size_t{8} * kBlockOf[code >> 8] + (code >> 5 & 7);
  return static_cast<Class>(kBlocks[word] >> (2 * (code & 31)) & 3);
}

struct Character {
  Class type;
  std::size_t length;  // in bytes
  std::uint32_t code;  // kNoCode: a byte that belongs to no character
};

constexpr std::uint32_t kNoCode = 0xFFFFFFFF;

Character decode(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<std::uint8_t>(text[i])); };
  if (byte(0) < 0x80) return {class_of(byte(0)), 1, byte(0)};
  const Utf8Scan scan = scan_utf8(text);
  if (scan.state != Utf8Scan::State::valid) return {Class::other, 1, kNoCode};
  std::uint32_t code = byte(0) & (0x7Fu >> scan.length);
  for (std::size_t i = 1; i < scan.length; ++i) code = code << 6 | (byte(i) & 0x3F);
  return {class_of(code), scan.length, code};
}

bool is_punctuation(std::uint32_t code) {
  const auto* const after = std::upper_bound(std::begin(kPunctuation), std::end(kPunctuation), code,
                                             [](std::uint32_t c, const auto& run) { return c < run[0]; });
  return after != std::begin(kPunctuation) && code <= (*std::prev(after))[1];
}

bool is_line_end(char c) { return c == '\r' || c == '\n'; }

// Where a run of characters of one class that begins at `at` ends.
std::size_t end_of_run(std::string_view text, std::size_t at, Class type) {
  while (at < text.size()) {
    const Character next = decode(text.substr(at));
    if (next.type != type) break;
    at += next.length;
  }
  return at;
}

// The same for characters that belong to a run; belongs(character) says so.
template <class Belongs>
std::size_t end_of_run_where(std::string_view text, std::size_t at, Belongs belongs) {
  while (at < text.size()) {
    const Character next = decode(text.substr(at));
    if (!belongs(next)) break;
    at += next.length;
  }
  return at;
}

// The length of "'s", "'ll" and the like at the start of the text, or 0.
std::size_t contraction(std::string_view text, bool any_case) {
  if (text.size() < 2 || text[0] != '\'') return 0;
  const auto letter = [&](std::size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  switch (letter(1)) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    case 'r':
    case 'v':
      return letter(2) == 'e' ? 3 : 0;
    case 'l':
      return letter(2) == 'l' ? 3 : 0;
    default:
      // U+017F, the long s, is the one other character whose case folds to one of these letters.
      return any_case && text.substr(1).starts_with("\xC5\xBF") ? 3 : 0;
  }
}

// \s+(?!\S)|\s+ : a run of spaces, of which the last one is left to the word that follows it, if it is not the only one.
// `ends_text` tells of a character whether the text ends before it.
template <class EndsText>
std::size_t spaces(std::string_view text, EndsText ends_text) {
  std::size_t last = 0;
  std::size_t end = 0;
  while (end < text.size()) {
    const Character next = decode(text.substr(end));
    if (next.type != Class::space) return last > 0 && !ends_text(next) ? last : end;
    last = end;
    end += next.length;
  }
  return end;
}

std::size_t gpt2_word(std::string_view text, bool digits_apart) {
  if (const std::size_t length = contraction(text, false)) return length;
  const auto ends_text = [&](const Character& next) { return digits_apart && next.type == Class::number; };

  Character first = decode(text);
  if (ends_text(first)) return first.length;
  std::size_t begin = 0;  // of what comes after a leading space
  if (text[0] == ' ' && text.size() > 1) {
    const Character second = decode(text.substr(1));
    if (second.type != Class::space && !ends_text(second)) {
      first = second;
      begin = 1;
    }
  }
  if (first.type == Class::space) return spaces(text, ends_text);
  //  ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
  return end_of_run(text, begin + first.length, first.type);
}

// [\p{P}$+<=>^~|]
bool is_mark(const Character& character) {
  constexpr std::string_view kSymbols = "$+<=>^~|";
  if (character.type != Class::other || character.code == kNoCode) return false;
  if (character.code < 0x80 && kSymbols.find(static_cast<char>(character.code)) != std::string_view::npos) return true;
  return is_punctuation(character.code);
}

// The first word of a run of numbers: three digits of ASCII, or what comes before the next three.
std::size_t three_digits(std::string_view text) {
  std::size_t digits = 0;  // that end at `at`
  std::size_t at = 0;
  while (at < text.size()) {
    const Character next = decode(text.substr(at));
    if (next.type != Class::number) break;
    at += next.length;
    digits = next.code < 0x80 ? digits + 1 : 0;
    if (digits == 3) return at == 3 ? 3 : at - 3;
  }
  return at;
}

std::size_t ggml_default_word(std::string_view text) {
  const Character first = decode(text);
  if (is_mark(first)) return end_of_run_where(text, first.length, is_mark);

  // A text between two runs of marks. It has no apostrophe and so no contraction.
  if (first.type == Class::number) return three_digits(text);
  std::size_t begin = 0;  // of what comes after a leading space
  Character head = first;
  if (text[0] == ' ' && text.size() > 1) {
    const Character second = decode(text.substr(1));
    if (second.type == Class::number) return 1;  //  ?\p{N}+ is cut once more, before its numbers
    if (second.type != Class::space && !is_mark(second)) {
      head = second;
      begin = 1;
    }
  }
  if (head.type == Class::space) return spaces(text, is_mark);
  return end_of_run_where(text, begin + head.length,
                          [&](const Character& next) { return next.type == head.type && !is_mark(next); });
}

// What cuts that are like Llama 3's differ in.
struct Llama3Like {
  int digits;      // in a word, at most
  bool line_ends;  // go to the marks before them
};

std::size_t llama3_word(std::string_view text, const Llama3Like& cut) {
  if (const std::size_t length = contraction(text, true)) return length;
  const Character first = decode(text);

  // [^\r\n\p{L}\p{N}]?\p{L}+ without its first part; with it below
  if (first.type == Class::letter) return end_of_run(text, first.length, Class::letter);

  // \p{N}{1,3}, or one
  if (first.type == Class::number) {
    std::size_t end = first.length;
    for (int count = 1; count < cut.digits && end < text.size(); ++count) {
      const Character next = decode(text.substr(end));
      if (next.type != Class::number) break;
      end += next.length;
    }
    return end;
  }

  const Character second =
      first.length < text.size() ? decode(text.substr(first.length)) : Character{Class::space, 0, kNoCode};
  if (second.type == Class::letter && !is_line_end(text[0])) {
    return end_of_run(text, first.length + second.length, Class::letter);
  }

  //  ?[^\s\p{L}\p{N}]+[\r\n]*
  if (first.type == Class::other || (text[0] == ' ' && second.type == Class::other)) {
    std::size_t end = end_of_run(text, first.length, Class::other);
    while (cut.line_ends && end < text.size() && is_line_end(text[end])) ++end;
    return end;
  }

  // \s*[\r\n]+ : up to the last line end of the run, if it has one
  const std::size_t end = end_of_run(text, 0, Class::space);
  const std::size_t line_end = text.substr(0, end).find_last_of("\r\n");
  if (line_end != std::string_view::npos) return line_end + 1;
  return spaces(text, [](const Character&) { return false; });
}

}  // namespace

std::size_t first_word(Vocabulary::PreTokenizer kind, std::string_view text) {
  switch (kind) {
    case Vocabulary::PreTokenizer::gpt2:
      return gpt2_word(text, false);
    case Vocabulary::PreTokenizer::smollm:
      return gpt2_word(text, true);
    case Vocabulary::PreTokenizer::ggml_default:
      return ggml_default_word(text);
    case Vocabulary::PreTokenizer::qwen2:
      return llama3_word(text, {.digits = 1, .line_ends = true});
    case Vocabulary::PreTokenizer::seed_coder:
      return llama3_word(text, {.digits = 1, .line_ends = false});
    case Vocabulary::PreTokenizer::llama3:
      break;
  }
  return llama3_word(text, {.digits = 3, .line_ends = true});
}

std::size_t spaces_at_start(std::string_view text) { return end_of_run(text, 0, Class::space); }

std::size_t spaces_at_end(std::string_view text) {
  std::size_t begin = text.size();
  while (begin > 0) {
    std::size_t at = begin - 1;  // of the last character
    while (at > 0 && begin - at < 4 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
    const Character last = decode(text.substr(at, begin - at));
    if (last.type != Class::space || last.length != begin - at) break;
    begin = at;
  }
  return text.size() - begin;
}

}  // namespace llama2cpp
