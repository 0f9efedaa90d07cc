// GGUF's Q5_K: 256 weights in 176 bytes, weight = (d * s) * q - dmin * m, with s and m for each 32.
//   d      f16                byte 0
//   dmin   f16                byte 2
//   s, m   6 bits each [8]    byte 4: see k_scale_and_minimum
//   h      1 bit [256]        byte 16: bit j of byte i is the fifth bit of weight i + 32 * j
//   q      4 bits [256]       byte 48: byte i of 32 holds weight i in its low half and weight i + 32 in its high half; so
//                             three times more
#pragma once

#include "format/k_fit.h"

namespace llama2cpp {

inline void integers_q5_k(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block / 8, 176);
  const std::int64_t part = block % 8;  // 32 of the 256
  read_k_scales(p, part, out);
  const std::byte* q = p + 48 + part / 2 * 32;
  for (std::size_t i = 0; i < 32; ++i) {
    const int low = byte_at(q + i) >> part % 2 * 4 & 15;
    const int high = byte_at(p + 16 + i) >> part & 1;
    out.q[i] = static_cast<std::int8_t>(low | high << 4);
  }
}

inline void unpack_q5_k(const std::byte* p, std::uint8_t* codes, UnitRow& out) {
  unpack_k_scales(p, out);
  unpack_k_nibbles(p + 48, codes);
  add_bit_rows<4>(p + 16, codes);
}

inline void encode_q5_k(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for (std::int64_t i = 0; i < count; i += 256, out += 176) {
    const KBlock block = fit_affine<32>(values + i, importance == nullptr ? nullptr : importance + i, 31, 63);
    put_k_scales(out, block);
    put_top_bits(out + 16, block.codes, 4);
    put_k_nibbles(out + 48, block.codes);
  }
}

inline constexpr Format kQ5_K{.name = "q5_k",
                              .group = 256,
                              .group_bytes = 176,
                              .quantized = true,
                              .decode = decode_blocks<integers_q5_k, true>,
                              .encode = encode_q5_k,
                              .integers = integers_q5_k,
                              .blocks = {.bits = 5, .sub_scales = true, .minimum = true},
                              .units = units_of_256<176, unpack_q5_k>};

}  // namespace llama2cpp
