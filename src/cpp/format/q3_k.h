// GGUF's Q3_K: 256 weights in 110 bytes, weight = (d * (s - 32)) * (q - 4), with s for each 16.
//   h   1 bit [256]    byte 0: bit j of byte i is the third bit of weight i + 32 * j
//   q   2 bits [256]   byte 32: byte i of 32 holds weights i, i + 32, i + 64 and i + 96, the first lowest; the next 32
//                      bytes hold the other 128
//   s   6 bits [16]    byte 96: byte i of 8 holds the low 4 bits of scale i, and above them those of scale i + 8; bytes
//                      8-11 hold the high 2 bits of scales i, i + 4, i + 8 and i + 12, the first lowest
//   d   f16            byte 108
#pragma once

#include <algorithm>

#include "format/k_fit.h"

namespace llama2cpp {

inline void integers_q3_k(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block / 8, 110);
  const auto part = static_cast<std::size_t>(block % 8);  // 32 of the 256
  out.d = half_at(p + 108);
  for (std::size_t h = 0; h < 2; ++h) {
    const std::size_t i = 2 * part + h;
    const int low = byte_at(p + 96 + i % 8) >> (i / 8 * 4) & 15;
    const int high = byte_at(p + 104 + i % 4) >> (i / 4 * 2) & 3;
    out.sub[h] = (low | high << 4) - 32;
  }
  const std::byte* q = p + 32 + part / 4 * 32;
  for (std::size_t i = 0; i < 32; ++i) {
    const int low = byte_at(q + i) >> part % 4 * 2 & 3;
    const int high = byte_at(p + i) >> part & 1;
    out.q[i] = static_cast<std::int8_t>((low | high << 2) - 4);
  }
}

inline void unpack_q3_k(const std::byte* p, std::uint8_t* codes, UnitRow& out) {
  out.d[0] = UnitRow::half(p + 108);
  for (std::size_t i = 0; i < 16; ++i) {
    const int low = byte_at(p + 96 + i % 8) >> (i / 8 * 4) & 15;
    const int high = byte_at(p + 104 + i % 4) >> (i / 4 * 2) & 3;
    out.sub[i] = static_cast<std::uint8_t>((low | high << 4) - 32);
  }
  add_pair_rows<0>(p + 32, codes);
  add_bit_rows<2>(p, codes);
}

inline void encode_q3_k(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for (std::int64_t i = 0; i < count; i += 256, out += 110) {
    const KBlock block = fit_symmetric<16>(values + i, importance == nullptr ? nullptr : importance + i, 4, 32);
    put_top_bits(out, block.codes, 2);
    put_two_bits(out + 32, block.codes, 0);
    std::fill(out + 96, out + 108, std::byte{0});
    for (std::size_t g = 0; g < 16; ++g) {
      const auto scale = static_cast<std::uint32_t>(block.scales[g] + 32);
      out[96 + g % 8] |= static_cast<std::byte>((scale & 15U) << (g / 8 * 4));
      out[104 + g % 4] |= static_cast<std::byte>((scale >> 4) << (g / 4 * 2));
    }
    put_u16(out + 108, block.d);
  }
}

inline constexpr Format kQ3_K{.name = "q3_k",
                              .group = 256,
                              .group_bytes = 110,
                              .quantized = true,
                              .decode = decode_blocks<integers_q3_k, false>,
                              .encode = encode_q3_k,
                              .integers = integers_q3_k,
                              .blocks = {.bits = 3, .offset = 4, .halves = 2, .sub_scales = true},
                              .units = units_of_256<110, unpack_q3_k>};

}  // namespace llama2cpp
