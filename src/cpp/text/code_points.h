// Code points: reading them from bytes, sets of them, and the classes that several sets divide them into.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "core/utf8.h"

namespace llama2cpp {

// A byte that belongs to no character is a code point of its own, which has no general category.
inline constexpr std::uint32_t kNoCode = 0x110000;
inline constexpr std::uint32_t kEndOfCodes = kNoCode + 1;

struct CodePoint {
  std::uint32_t code;
  std::uint32_t length;  // in bytes
};

// The first one of a text that is not empty.
inline CodePoint decode(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<std::uint8_t>(text[i])); };
  const auto follows = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead >= 0xC2 && lead < 0xE0 && text.size() >= 2 && follows(1)) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead > 0xE0 && lead < 0xED && text.size() >= 3 && follows(1) && follows(2)) {
    return {(lead & 0xF) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  const Utf8Scan scan = scan_utf8(text);
  if (scan.state != Utf8Scan::State::valid) return {kNoCode, 1};
  std::uint32_t code = byte(0) & (0x7FU >> scan.length);
  for (std::size_t i = 1; i < scan.length; ++i) code = code << 6 | (byte(i) & 0x3FU);
  return {code, static_cast<std::uint32_t>(scan.length)};
}

bool is_white_space(std::uint32_t code);

class CodeSet {
 public:
  using Run = std::pair<std::uint32_t, std::uint32_t>;  // the first, and the one behind the last

  CodeSet() = default;
  explicit CodeSet(std::vector<Run> runs);  // in any order; they may overlap

  static CodeSet one(std::uint32_t code) { return CodeSet({{code, code + 1}}); }
  static CodeSet white_space();
  // A general category or the first letter of several: "Lu", "L". Nothing for a name that is none.
  static std::optional<CodeSet> category(std::string_view name);

  std::span<const Run> runs() const { return runs_; }
  bool contains(std::uint32_t code) const;
  CodeSet inverted() const;
  CodeSet united(const CodeSet& other) const;
  CodeSet intersected(const CodeSet& other) const;

  bool operator==(const CodeSet&) const = default;

 private:
  std::vector<Run> runs_;  // ascending, with gaps between
};

// Two code points are of one class if every set has both or neither.
class CodeClasses {
 public:
  static constexpr std::size_t kMostSets = 256;
  static constexpr std::size_t kMost = 255;

  // No more than kMostSets. Throws FormatError for sets that make more classes than kMost.
  explicit CodeClasses(std::span<const CodeSet> sets);

  std::size_t size() const { return members_.size(); }
  std::uint8_t of_ascii(std::uint8_t byte) const { return ascii_[byte]; }
  std::uint8_t of(std::uint32_t code) const {
    return blocks_[std::size_t{of_block_[code / kBlock]} * kBlock + code % kBlock];
  }
  bool in_set(std::size_t cls, std::size_t set) const { return (members_[cls][set / 64] >> (set % 64) & 1) != 0; }

  // Whether `holds` is true of the class of a code point from `first` on, before `end`.
  template <class Holds>
  bool any_of(std::uint32_t first, std::uint32_t end, Holds holds) const {
    std::vector<bool> known(blocks_.size() / kBlock);  // whole blocks where it is true of none
    while (first < end) {
      const std::uint32_t block = of_block_[first / kBlock];
      const auto stop = static_cast<std::uint32_t>(std::min<std::size_t>(end, (first / kBlock + 1) * kBlock));
      for (std::uint32_t code = first; !known[block] && code < stop; ++code) {
        if (holds(of(code))) return true;
      }
      if (stop - first == kBlock) known[block] = true;
      first = stop;
    }
    return false;
  }

 private:
  static constexpr std::size_t kBlock = 256;  // code points
  using Members = std::array<std::uint64_t, kMostSets / 64>;

  std::vector<Members> members_;  // [class] a bit for each set
  std::array<std::uint8_t, 128> ascii_{};
  std::vector<std::uint16_t> of_block_;  // [code point / 256] which block
  std::vector<std::uint8_t> blocks_;     // [block][256]; of equal uniform ones there is one
};

}  // namespace llama2cpp
