// GGUF's Q6_K: 256 weights in 210 bytes, weight = (d * s) * (q - 32), with s for each 16.
//   q   4 bits [256]   byte 0: the low bits; byte i of 64 holds weight i in its low half and weight i + 64 in its high
//                      half; the next 64 bytes hold the other 128
//   h   2 bits [256]   byte 128: the high bits; byte i of 32 holds weights i, i + 32, i + 64 and i + 96, the first
//                      lowest; the next 32 bytes hold the other 128
//   s   int8 [16]      byte 192
//   d   f16            byte 208
#pragma once

#include "format/k_fit.h"

namespace llama2cpp {

inline void integers_q6_k(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block / 8, 210);
  const auto part = static_cast<std::size_t>(block % 8);  // 32 of the 256
  out.d = half_at(p + 208);
  for (std::size_t h = 0; h < 2; ++h) out.sub[h] = static_cast<std::int8_t>(byte_at(p + 192 + 2 * part + h));
  const std::byte* q = p + part / 4 * 64 + part % 2 * 32;
  const std::byte* top = p + 128 + part / 4 * 32;
  for (std::size_t i = 0; i < 32; ++i) {
    const int low = byte_at(q + i) >> part % 4 / 2 * 4 & 15;
    const int high = byte_at(top + i) >> part % 4 * 2 & 3;
    out.q[i] = static_cast<std::int8_t>((low | high << 4) - 32);
  }
}

inline void unpack_q6_k(const std::byte* p, std::uint8_t* codes, UnitRow& out) {
  out.d[0] = UnitRow::half(p + 208);
  std::memcpy(out.sub.data(), p + 192, 16);
  for (int half = 0; half < 2; ++half) {
    add_bits<0, 4, 0>(p + half * 64, 64, codes + half * 128);
    add_bits<4, 4, 0>(p + half * 64, 64, codes + half * 128 + 64);
  }
  add_pair_rows<4>(p + 128, codes);
}

inline void encode_q6_k(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for (std::int64_t i = 0; i < count; i += 256, out += 210) {
    const KBlock block = fit_symmetric<16>(values + i, importance == nullptr ? nullptr : importance + i, 32, 128);
    for (std::size_t half = 0; half < 2; ++half) {
      const std::uint8_t* const codes = block.codes.data() + half * 128;
      for (std::size_t k = 0; k < 64; ++k) {
        put_byte(out + half * 64 + k, (codes[k] & 15U) | (codes[k + 64] & 15U) << 4);
      }
    }
    put_two_bits(out + 128, block.codes, 4);
    for (std::size_t g = 0; g < 16; ++g) put_byte(out + 192 + g, static_cast<std::uint32_t>(block.scales[g]));
    put_u16(out + 208, block.d);
  }
}

inline constexpr Format kQ6_K{.name = "q6_k",
                              .group = 256,
                              .group_bytes = 210,
                              .quantized = true,
                              .decode = decode_blocks<integers_q6_k, false>,
                              .encode = encode_q6_k,
                              .integers = integers_q6_k,
                              .blocks = {.bits = 6, .offset = 32, .halves = 2, .sub_scales = true},
                              .units = units_of_256<210, unpack_q6_k>};

}  // namespace llama2cpp
