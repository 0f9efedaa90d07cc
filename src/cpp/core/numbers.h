// Numbers as text and back, and texts joined: the same under every locale of the process, C's and C++'s. A failing
// allocation throws. (Streams do neither: they follow std::locale::global, and swallow std::bad_alloc.)
#pragma once

#include <charconv>
#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace llama2cpp {

// Six digits at most, as printf's %g has them: 0.1, 1e-05, 1.5e+20, inf, nan.
void append_number(std::string& out, double number);

// So many digits after the point: 1.50 where it is two.
std::string fixed_point(double number, int digits);

// The double that is nearest to a number as JSON spells it. One that is too small is 0; of one that is too large there is
// none. Nothing else may be in the text.
std::optional<double> parse_number(std::string_view text);

namespace detail {

inline void append(std::string& out, std::string_view text) { out += text; }
void append(std::string& out, std::same_as<char> auto c) { out += c; }  // no number becomes a character
inline void append(std::string& out, std::floating_point auto number) {
  append_number(out, static_cast<double>(number));
}

// A byte may be a number or a character: the caller converts it to the one that it is.
template <std::integral Number>
  requires(sizeof(Number) > 1)
void append(std::string& out, Number number) {
  char digits[24];
  out.append(digits, std::to_chars(digits, digits + sizeof(digits), number).ptr);
}

}  // namespace detail

// cat("w is ", 3, " wide") -> "w is 3 wide"
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::string text;
  (detail::append(text, parts), ...);
  return text;
}

}  // namespace llama2cpp
