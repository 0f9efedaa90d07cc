// GGUF's Q5_1: 32 weights in 24 bytes, weight = d * q + m.
//   d   f16           byte 0
//   m   f16           byte 2
//   h   1 bit [32]    byte 4: the fifth bit of weight i is bit i
//   q   4 bits [32]   byte 8: byte i holds weight i in its low half and weight i + 16 in its high half
#pragma once

#include "format/encode.h"

namespace llama2cpp {

inline void integers_q5_1(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 24);
  out.d = half_at(p);
  out.dm = half_at(p + 2);
  out.m = {1, 1};
  const std::uint32_t high = u16_at(p + 4) | static_cast<std::uint32_t>(u16_at(p + 6)) << 16;
  for (std::size_t i = 0; i < 16; ++i) {
    const std::uint32_t pair = byte_at(p + 8 + i);
    out.q[i] = static_cast<std::int8_t>((pair & 15U) | (high >> i & 1U) << 4);
    out.q[i + 16] = static_cast<std::int8_t>(pair >> 4 | (high >> (i + 16) & 1U) << 4);
  }
}

inline void unpack_q5_1(const std::byte* p, std::uint8_t* codes, std::size_t i, UnitRow& out) {
  out.d[i] = UnitRow::half(p);
  out.dm[i] = UnitRow::half(p + 2);
  low_and_high_halves(p + 8, codes);
  add_fifth_bits(p + 4, codes);
}

// As ggml's reference, where all errors count alike.
inline void encode_q5_1(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for_affine_blocks(values, importance, count, 31, [&](float d, float minimum, const Codes32& codes) {
    put_half(out, d);
    put_half(out + 2, minimum);
    put_fifth_bits(out + 4, codes);
    put_nibbles(out + 8, codes);
    out += 24;
  });
}

inline constexpr Format kQ5_1{.name = "q5_1",
                              .group = 32,
                              .group_bytes = 24,
                              .quantized = true,
                              .decode = decode_blocks<integers_q5_1, true>,
                              .encode = encode_q5_1,
                              .integers = integers_q5_1,
                              .blocks = {.bits = 5, .minimum = true},
                              .units = units_of_blocks<24, unpack_q5_1>};

}  // namespace llama2cpp
