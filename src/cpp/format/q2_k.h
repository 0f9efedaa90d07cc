// GGUF's Q2_K: 256 weights in 84 bytes, weight = (d * s) * q - dmin * m, with s and m for each 16.
//   s, m   4 bits each [16]   byte 0: s in the low half
//   q      2 bits [256]       byte 16: byte i of 32 holds weights i, i + 32, i + 64 and i + 96, the first lowest; the
//                             next 32 bytes hold the other 128
//   d      f16                byte 80
//   dmin   f16                byte 82
#pragma once

#include "format/k_fit.h"

namespace llama2cpp {

inline void integers_q2_k(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block / 8, 84);
  const auto part = static_cast<std::size_t>(block % 8);  // 32 of the 256
  out.d = half_at(p + 80);
  out.dm = -half_at(p + 82);
  for (std::size_t h = 0; h < 2; ++h) {
    out.sub[h] = byte_at(p + 2 * part + h) & 15;
    out.m[h] = byte_at(p + 2 * part + h) >> 4;
  }
  const std::byte* q = p + 16 + part / 4 * 32;
  for (std::size_t i = 0; i < 32; ++i) out.q[i] = static_cast<std::int8_t>(byte_at(q + i) >> part % 4 * 2 & 3);
}

inline void unpack_q2_k(const std::byte* p, std::uint8_t* codes, UnitRow& out) {
  out.d[0] = UnitRow::half(p + 80);
  out.dm[0] = UnitRow::minus(UnitRow::half(p + 82));
  add_bits<0, 4, 0>(p, 16, out.sub.data());
  add_bits<4, 4, 0>(p, 16, out.m.data());
  add_pair_rows<0>(p + 16, codes);
}

inline void encode_q2_k(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for (std::int64_t i = 0; i < count; i += 256, out += 84) {
    const KBlock block = fit_affine<16>(values + i, importance == nullptr ? nullptr : importance + i, 3, 15);
    for (std::size_t g = 0; g < 16; ++g) {
      put_byte(out + g, static_cast<std::uint32_t>(block.scales[g] | block.minima[g] << 4));
    }
    put_two_bits(out + 16, block.codes, 0);
    put_u16(out + 80, block.d);
    put_u16(out + 82, block.dmin);
  }
}

inline constexpr Format kQ2_K{.name = "q2_k",
                              .group = 256,
                              .group_bytes = 84,
                              .quantized = true,
                              .decode = decode_blocks<integers_q2_k, true>,
                              .encode = encode_q2_k,
                              .integers = integers_q2_k,
                              .blocks = {.bits = 2, .halves = 2, .sub_scales = true, .minimum = true},
                              .units = units_of_256<84, unpack_q2_k>};

}  // namespace llama2cpp
