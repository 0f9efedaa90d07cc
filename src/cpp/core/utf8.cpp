#include "core/utf8.h"

#include <cstdint>
#include <utility>

namespace llama2cpp {

Utf8Scan scan_utf8(std::string_view text) {
  using State = Utf8Scan::State;
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };

  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {State::valid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {State::invalid, 1};
  const std::size_t length = utf8_length_of_lead(text[0]);

  // Only the second byte has a narrower range, and only after these four leading bytes.
  std::uint8_t low = 0x80;
  std::uint8_t high = 0xBF;
  if (lead == 0xE0) low = 0xA0;   // overlong
  if (lead == 0xED) high = 0x9F;  // surrogates
  if (lead == 0xF0) low = 0x90;   // overlong
  if (lead == 0xF4) high = 0x8F;  // above U+10FFFF
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {State::incomplete, i};
    if (byte(i) < low || byte(i) > high) return {State::invalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {State::valid, length};
}

std::size_t utf8_valid_bytes(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const Utf8Scan scan = scan_utf8(text.substr(at));
    if (scan.state != Utf8Scan::State::valid) break;
    at += scan.length;
  }
  return at;
}

std::size_t utf8_length_of_lead(char lead) {
  const auto byte = static_cast<std::uint8_t>(lead);
  if (byte >= 0xF0) return 4;
  if (byte >= 0xE0) return 3;
  if (byte >= 0xC0) return 2;
  return 1;
}

std::string Utf8Stream::push(std::string_view bytes) {
  held_.append(bytes);
  std::string out;
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Scan scan = scan_utf8(rest);
    if (scan.state == Utf8Scan::State::incomplete) break;
    out.append(scan.state == Utf8Scan::State::valid ? rest.substr(0, scan.length) : kReplacementCharacter);
    rest.remove_prefix(scan.length);
  }
  held_.erase(0, held_.size() - rest.size());
  return out;
}

std::string Utf8Stream::flush() {
  return std::exchange(held_, {}).empty() ? std::string() : std::string(kReplacementCharacter);
}

}  // namespace llama2cpp
