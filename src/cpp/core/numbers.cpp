// <charconv> does it, where the standard library has it for doubles. libc++ had no from_chars for them before version 20,
// and Apple's to_chars needs macOS 13.3: there C's functions do, with a locale of our own or the point put right.
#include "core/numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <new>

#ifndef __cpp_lib_to_chars
#include <clocale>
#include <cstdlib>
#ifdef __APPLE__
#include <xlocale.h>
#else
#include <locale.h>
#endif
#endif

namespace llama2cpp {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// The power of ten of a number's first digit that is not 0: 2 of "123", -3 of "0.00123". Of zero: the least there is.
std::int64_t magnitude(std::string_view text) {
  constexpr std::int64_t kLeast = std::numeric_limits<std::int64_t>::min() / 4;
  constexpr std::int64_t kMost = std::int64_t{1} << 40;  // more digits than any text has
  const std::size_t exponent_at = std::min(text.find_first_of("eE"), text.size());
  const std::string_view digits = text.substr(0, exponent_at);
  const std::size_t first = digits.find_first_of("123456789");
  if (first == std::string_view::npos) return kLeast;
  const auto point = static_cast<std::int64_t>(std::min(digits.find('.'), digits.size()));
  const auto at = static_cast<std::int64_t>(first);
  std::int64_t exponent = 0;
  for (const char c : text.substr(exponent_at)) {
    if (is_digit(c)) exponent = std::min(exponent * 10 + (c - '0'), kMost);
  }
  if (text.substr(exponent_at).find('-') != std::string_view::npos) exponent = -exponent;
  return (at < point ? point - at - 1 : point - at) + exponent;
}

#ifdef __cpp_lib_to_chars

void spell(std::string& out, double number, std::chars_format format, int precision) {
  char digits[400];  // the largest double has 309 before its point
  const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), number, format, precision);
  if (error == std::errc{}) out.append(digits, end);
}

double convert(std::string_view text) {
  double value = 0.0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc{}) return value;
  const double limit = magnitude(text) > 0 ? std::numeric_limits<double>::infinity() : 0.0;  // too large, or too small
  return text.starts_with('-') ? -limit : limit;
}

#else

void spell(std::string& out, double number, std::chars_format format, int precision) {
  char digits[400];
  const bool general = format == std::chars_format::general;
  const int length = std::snprintf(digits, sizeof(digits), general ? "%.*g" : "%.*f", precision, number);
  if (length < 0) throw std::bad_alloc();
  // C's locale says what stands between the digits: one sign, of one byte or several.
  const std::string_view text(digits, static_cast<std::size_t>(length));
  const auto plain = [](char c) { return is_digit(c) || c == '-' || c == '+' || (c >= 'a' && c <= 'z'); };
  const auto* const point = std::find_if_not(text.begin(), text.end(), plain);
  out.append(text.begin(), point);
  if (point == text.end()) return;
  out += '.';
  out.append(std::find_if(point, text.end(), plain), text.end());
}

double convert(std::string_view text) {
  const std::string ended(text);
#ifdef _WIN32
  static const _locale_t c_locale = _create_locale(LC_ALL, "C");
#else
  static const locale_t c_locale = ::newlocale(LC_ALL_MASK, "C", nullptr);
#endif
  if (c_locale == nullptr) throw std::bad_alloc();
  char* end = nullptr;
#ifdef _WIN32
  const double value = _strtod_l(ended.c_str(), &end, c_locale);
#else
  const double value = ::strtod_l(ended.c_str(), &end, c_locale);
#endif
  // Long numbers take memory, and without any the result is none, or infinity.
  if (end != ended.c_str() + ended.size() || (std::isinf(value) && magnitude(text) < 308)) throw std::bad_alloc();
  return value;
}

#endif

}  // namespace

void append_number(std::string& out, double number) { spell(out, number, std::chars_format::general, 6); }

std::string fixed_point(double number, int digits) {
  std::string out;
  spell(out, number, std::chars_format::fixed, digits);
  return out;
}

std::optional<double> parse_number(std::string_view text) {
  const double value = convert(text);
  return std::isinf(value) ? std::nullopt : std::optional(value);
}

}  // namespace llama2cpp
