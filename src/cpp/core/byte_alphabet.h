// The printable stand-ins that GPT-2 style vocabularies have for bytes. A byte that is a visible character of Latin-1
// stands for itself; the 68 others are U+0100, U+0101, ... in the order of their values. A space is U+0120.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace llama2cpp {

inline constexpr std::size_t kStandInEnd = 256 + 68;  // no character from here on stands for a byte

constexpr bool is_own_stand_in(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

// [byte]: the character that stands for it.
constexpr std::array<std::uint16_t, 256> make_stand_ins() {
  std::array<std::uint16_t, 256> stand_ins = {};
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    stand_ins[byte] = static_cast<std::uint16_t>(is_own_stand_in(byte) ? byte : next++);
  }
  return stand_ins;
}

// [character]: the byte that it stands for, -1: none.
constexpr std::array<std::int16_t, kStandInEnd> make_stood_for() {
  std::array<std::int16_t, kStandInEnd> bytes = {};
  for (std::int16_t& byte : bytes) byte = -1;
  const auto stand_ins = make_stand_ins();
  for (unsigned byte = 0; byte < 256; ++byte) bytes[stand_ins[byte]] = static_cast<std::int16_t>(byte);
  return bytes;
}

// The bytes that a text of stand-ins (in UTF-8) spells. Nothing if any of its characters stands for no byte.
inline std::optional<std::string> bytes_of_stand_ins(std::string_view text) {
  static constexpr auto kBytes = make_stood_for();
  std::string bytes;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned character = static_cast<unsigned char>(text[i]);
    if (character >= 0x80) {  // all stand-ins are below U+0800: two bytes
      if (character < 0xC2 || character > 0xDF || i + 1 == text.size()) return std::nullopt;
      const unsigned tail = static_cast<unsigned char>(text[++i]);
      if ((tail & 0xC0) != 0x80) return std::nullopt;
      character = (character & 0x1F) << 6 | (tail & 0x3F);
    }
    if (character >= kStandInEnd || kBytes[character] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kBytes[character]));
  }
  return bytes;
}

inline std::string stand_ins_of_bytes(std::string_view bytes) {
  static constexpr auto kStandIns = make_stand_ins();
  std::string text;
  for (const char c : bytes) {
    const unsigned character = kStandIns[static_cast<unsigned char>(c)];
    if (character < 0x80) {
      text.push_back(static_cast<char>(character));
    } else {
      text.push_back(static_cast<char>(0xC0 | character >> 6));
      text.push_back(static_cast<char>(0x80 | (character & 0x3F)));
    }
  }
  return text;
}

}  // namespace llama2cpp
