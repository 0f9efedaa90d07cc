// Texts from files in error messages, and in the JSON that we write.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace llama2cpp {

// "text", with quotes and with escapes as JSON has them. The text must be UTF-8.
inline std::string quote(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const unsigned byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) {
      out += "\\u00";
      for (const unsigned digit : {byte >> 4, byte & 15}) out += "0123456789abcdef"[digit];
    } else {
      if (c == '"' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out += '"';
}

// The same for error messages: of a long text only the beginning.
inline std::string excerpt(std::string_view text) {
  constexpr std::size_t kBytes = 60;
  if (text.size() <= kBytes) return quote(text);
  const auto continues = [](char c) { return (static_cast<unsigned char>(c) & 0xC0U) == 0x80U; };
  std::size_t end = kBytes;
  while (end > 0 && continues(text[end])) --end;  // never half a character
  return quote(text.substr(0, end)) + "...";
}

}  // namespace llama2cpp
