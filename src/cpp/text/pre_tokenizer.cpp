#include "text/pre_tokenizer.h"

#include <algorithm>
#include <cstdint>
#include <initializer_list>
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

enum class Case : std::uint8_t { none, upper, lower, either };

Case case_of(const Character& character) {
  if (character.code == kNoCode) return Case::none;
  const std::size_t word = std::size_t{8} * kCaseBlockOf[character.code >> 8] + (character.code >> 5 & 7);
  return static_cast<Case>(kCaseBlocks[word] >> (2 * (character.code & 31)) & 3);
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

// \s*[\r\n]+|\s+(?!\S)|\s+ : up to the last line end of the run, if it has one
std::size_t lines_or_spaces(std::string_view text) {
  const std::size_t end = end_of_run(text, 0, Class::space);
  const std::size_t line_end = text.substr(0, end).find_last_of("\r\n");
  if (line_end != std::string_view::npos) return line_end + 1;
  return spaces(text, [](const Character&) { return false; });
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

  return lines_or_spaces(text);
}

// [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]* at `begin`.
std::size_t end_of_upper(std::string_view text, std::size_t begin) {
  return end_of_run_where(
      text, begin, [](const Character& next) { return case_of(next) == Case::upper || case_of(next) == Case::either; });
}

// The same and [\p{Ll}\p{Lm}\p{Lo}\p{M}]+ : where it ends, or `begin` where it is not there. What both sets have goes to
// the first, unless the second would have nothing.
std::size_t end_of_upper_and_lower(std::string_view text, std::size_t begin) {
  std::size_t after_either = begin;
  std::size_t end = begin;
  Case last = Case::upper;
  for (; end < text.size();) {
    const Character next = decode(text.substr(end));
    const Case type = case_of(next);
    const bool fits = last == Case::lower ? type == Case::lower || type == Case::either : type != Case::none;
    if (!fits) break;
    end += next.length;
    if (type == Case::either) after_either = end;
    if (type == Case::lower) last = Case::lower;
  }
  return last == Case::lower ? end : after_either;
}

std::size_t tekken_word(std::string_view text) {
  const Character first = decode(text);
  const bool may_lead = first.type != Class::letter && first.type != Class::number && !is_line_end(text[0]);
  for (const std::size_t begin : {first.length, std::size_t{0}}) {  // a mark may lead, or be the first of the rest
    if (begin > 0 && !may_lead) continue;
    if (const std::size_t end = end_of_upper_and_lower(text, begin); end > begin) return end;
  }
  // [...]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+ of upper case alone: else it would have been the other
  const std::size_t begin = may_lead ? first.length : 0;
  if (const std::size_t end = end_of_upper(text, begin); end > begin) return end;
  if (first.type == Class::number) return first.length;

  //  ?[^\s\p{L}\p{N}]+[\r\n/]*
  const bool spaced = text[0] == ' ' && text.size() > 1 && decode(text.substr(1)).type == Class::other;
  if (first.type == Class::other || spaced) {
    std::size_t end = end_of_run(text, first.length, Class::other);
    while (end < text.size() && (is_line_end(text[end]) || text[end] == '/')) ++end;
    return end;
  }
  return lines_or_spaces(text);
}

// [\x{4E00}-\x{9FA5}\x{0800}-\x{4E00}\x{AC00}-\x{D7FF}]
bool is_east_asian(const Character& character) {
  return (character.code >= 0x800 && character.code <= 0x9FA5) ||
         (character.code >= 0xAC00 && character.code <= 0xD7FF);
}

bool is_space(const Character& character) { return character.type == Class::space; }

bool is_letter(const Character& character) { return character.type == Class::letter; }

bool is_punctuation_mark(const Character& character) {
  return character.type == Class::other && character.code != kNoCode && is_punctuation(character.code);
}

// The first word of what a cut before has found, which is the first character and those behind it that belong to it: a run
// of characters that are East Asian, or of others.
template <class Belongs>
std::size_t east_asian_or_not(std::string_view text, Belongs belongs) {
  const Character first = decode(text);
  return end_of_run_where(text, first.length, [&](const Character& next) {
    return belongs(next) && is_east_asian(next) == is_east_asian(first);
  });
}

std::size_t deepseek_coder_word(std::string_view text) {
  const Character first = decode(text);
  if (is_line_end(text[0])) return 1;
  const bool more = first.length < text.size() && !is_line_end(text[first.length]);
  const Character second = more ? decode(text.substr(first.length)) : Character{Class::number, 0, kNoCode};

  // \s?\p{L}+, and of what is left \s?\p{P}+
  if (is_letter(first)) return east_asian_or_not(text, is_letter);
  if (is_punctuation_mark(first)) return east_asian_or_not(text, is_punctuation_mark);
  if (is_space(first) && is_letter(second)) return east_asian_or_not(text, is_letter);
  if (is_space(first) && is_punctuation_mark(second)) return east_asian_or_not(text, is_punctuation_mark);

  // \p{N}, and what is between all these: up to a space that goes with the word behind it
  if (first.type == Class::number) return first.length;
  std::size_t end = first.length;
  while (end < text.size() && !is_line_end(text[end])) {
    const Character next = decode(text.substr(end));
    if (next.type == Class::number || is_letter(next) || is_punctuation_mark(next)) break;
    if (is_east_asian(next) != is_east_asian(first)) break;
    const std::size_t behind = end + next.length;
    if (is_space(next) && behind < text.size()) {
      const Character leads = decode(text.substr(behind));
      if (is_letter(leads) || is_punctuation_mark(leads)) break;
    }
    end = behind;
  }
  return end;
}

}  // namespace

std::size_t first_word(PreTokenizer kind, std::string_view text) {
  switch (kind) {
    case PreTokenizer::gpt2:
      return gpt2_word(text, false);
    case PreTokenizer::smollm:
      return gpt2_word(text, true);
    case PreTokenizer::ggml_default:
      return ggml_default_word(text);
    case PreTokenizer::qwen2:
      return llama3_word(text, {.digits = 1, .line_ends = true});
    case PreTokenizer::seed_coder:
      return llama3_word(text, {.digits = 1, .line_ends = false});
    case PreTokenizer::tekken:
      return tekken_word(text);
    case PreTokenizer::deepseek_coder:
      return deepseek_coder_word(text);
    case PreTokenizer::llama3:
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
