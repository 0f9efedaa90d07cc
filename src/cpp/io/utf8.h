// UTF-8, checked strictly: names and texts in files go into error messages and to Python.
#pragma once

#include <cstddef>
#include <string_view>

namespace llama2cpp {

// The length of the character at the start of `text` (not empty), or 0 if it is not UTF-8: shortest form only, no
// surrogates, nothing above U+10FFFF (Unicode, table 3-7).
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto in = [&](std::size_t i, unsigned first, unsigned last) { return byte(i) >= first && byte(i) <= last; };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return in(1, 0x80, 0xBF) ? 2 : 0;
  if (lead < 0xF0) {
    const bool second = in(1, lead == 0xE0 ? 0xA0 : 0x80, lead == 0xED ? 0x9F : 0xBF);
    return second && in(2, 0x80, 0xBF) ? 3 : 0;
  }
  if (lead > 0xF4) return 0;
  const bool second = in(1, lead == 0xF0 ? 0x90 : 0x80, lead == 0xF4 ? 0x8F : 0xBF);
  return second && in(2, 0x80, 0xBF) && in(3, 0x80, 0xBF) ? 4 : 0;
}

// Where the first character begins that is not UTF-8; the text's length if there is none.
inline std::size_t utf8_valid_bytes(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t length = utf8_length(text.substr(at));
    if (length == 0) break;
    at += length;
  }
  return at;
}

}  // namespace llama2cpp
