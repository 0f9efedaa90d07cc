// A row's part of a unit of panels (see block_layout.h), taken from a row of a file in one go: what packing reads. It says
// what Format::integers says, 256 columns at a time and in the panels' own terms: nothing is converted and back.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "format/block_layout.h"

namespace llama2cpp {

struct Weight;

struct UnitRow {
  std::array<std::uint8_t, kUnitBlocks * kBlockCols> codes;  // q + offset
  std::array<std::uint16_t, kUnitBlocks> d;                  // f16; with sub-scales the first is all blocks'
  std::array<std::uint16_t, kUnitBlocks> dm;
  std::array<std::uint8_t, 2 * kUnitBlocks> sub;  // [blocks][halves]
  std::array<std::uint8_t, 2 * kUnitBlocks> m;
  std::array<std::uint8_t, kUnitBlocks> zero;  // int8

  // A field of f16 that lies anywhere.
  static std::uint16_t half(const std::byte* p) {
    std::uint16_t bits = 0;
    std::memcpy(&bits, p, sizeof(bits));
    return bits;
  }
  static std::uint16_t minus(std::uint16_t half) { return half ^ 0x8000U; }
};

// As Format::integers gives it: for formats that have no faster way, and to compare with it.
void units_of_integers(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t block,
                       std::int64_t count, UnitRow* out);

// 16 bytes with weight i in the low half of byte i, and weight i + 16 in its high half   -> codes [32]
inline void low_and_high_halves(const std::byte* p, std::uint8_t* codes) {
  std::array<std::uint64_t, 2> pairs{};
  std::memcpy(pairs.data(), p, sizeof(pairs));
  constexpr std::uint64_t kLow = 0x0F0F0F0F0F0F0F0FU;
  const std::array<std::uint64_t, 4> halves = {pairs[0] & kLow, pairs[1] & kLow, pairs[0] >> 4 & kLow,
                                               pairs[1] >> 4 & kLow};
  std::memcpy(codes, halves.data(), sizeof(halves));
}

// For each byte, bit i of it as the fifth bit of byte i.
inline constexpr std::array<std::uint64_t, 256> kFifthBits = [] {
  std::array<std::uint64_t, 256> table{};
  for (std::size_t byte = 0; byte < 256; ++byte) {
    for (std::size_t i = 0; i < 8; ++i) table[byte] |= static_cast<std::uint64_t>(byte >> i & 1U) << (8 * i + 4);
  }
  return table;
}();

// 32 bits, the fifth ones of the weights in their order                                  -> added to codes [32]
inline void add_fifth_bits(const std::byte* p, std::uint8_t* codes) {
  for (int byte = 0; byte < 4; ++byte, codes += 8) {
    std::uint64_t eight = 0;
    std::memcpy(&eight, codes, sizeof(eight));
    eight |= kFifthBits[static_cast<std::size_t>(p[byte])];
    std::memcpy(codes, &eight, sizeof(eight));
  }
}

// Bytes of which bits [shift, shift + width) are taken, to bits [to, to + width) of      -> codes [count]
template <int kShift, int kWidth, int kTo>
void add_bits(const std::byte* p, int count, std::uint8_t* codes) {
  constexpr auto kMask = static_cast<std::uint8_t>((1 << kWidth) - 1);
  for (int i = 0; i < count; ++i) {
    const auto bits = static_cast<std::uint8_t>(static_cast<std::uint8_t>(p[i]) >> kShift & kMask);
    codes[i] = static_cast<std::uint8_t>((kTo == 0 ? 0 : codes[i]) | bits << kTo);
  }
}

// The eight 32 weights whose bit 0 to 7 of 32 bytes follow each other, at bit kTo         -> added to codes [256]
template <int kTo>
void add_bit_rows(const std::byte* p, std::uint8_t* codes) {
  add_bits<0, 1, kTo>(p, 32, codes);
  add_bits<1, 1, kTo>(p, 32, codes + 32);
  add_bits<2, 1, kTo>(p, 32, codes + 64);
  add_bits<3, 1, kTo>(p, 32, codes + 96);
  add_bits<4, 1, kTo>(p, 32, codes + 128);
  add_bits<5, 1, kTo>(p, 32, codes + 160);
  add_bits<6, 1, kTo>(p, 32, codes + 192);
  add_bits<7, 1, kTo>(p, 32, codes + 224);
}

// 32 bytes for each 128 weights: byte i holds two bits of weights i, i + 32, i + 64 and i + 96, the first lowest, which
// become bits kTo and kTo + 1                                                            -> (added to) codes [256]
template <int kTo>
void add_pair_rows(const std::byte* p, std::uint8_t* codes) {
  for (int half = 0; half < 2; ++half, p += 32, codes += 128) {
    add_bits<0, 2, kTo>(p, 32, codes);
    add_bits<2, 2, kTo>(p, 32, codes + 32);
    add_bits<4, 2, kTo>(p, 32, codes + 64);
    add_bits<6, 2, kTo>(p, 32, codes + 96);
  }
}

}  // namespace llama2cpp
