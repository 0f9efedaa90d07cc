// GGUF's Q5_0: 32 weights in 22 bytes, weight = d * (q - 16).
//   d   f16           byte 0
//   h   1 bit [32]    byte 2: the fifth bit of weight i is bit i
//   q   4 bits [32]   byte 6: byte i holds weight i in its low half and weight i + 16 in its high half
#pragma once

#include "format/encode.h"

namespace llama2cpp {

inline void integers_q5_0(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 22);
  out.d = half_at(p);
  const std::uint32_t high = u16_at(p + 2) | static_cast<std::uint32_t>(u16_at(p + 4)) << 16;
  for (std::size_t i = 0; i < 16; ++i) {
    const std::uint32_t pair = byte_at(p + 6 + i);
    out.q[i] = static_cast<std::int8_t>(static_cast<int>((pair & 15U) | (high >> i & 1U) << 4) - 16);
    out.q[i + 16] = static_cast<std::int8_t>(static_cast<int>(pair >> 4 | (high >> (i + 16) & 1U) << 4) - 16);
  }
}

inline void unpack_q5_0(const std::byte* p, std::uint8_t* codes, std::size_t i, UnitRow& out) {
  out.d[i] = UnitRow::half(p);
  low_and_high_halves(p + 6, codes);
  add_fifth_bits(p + 2, codes);
}

// As ggml's reference, where all errors count alike.
inline void encode_q5_0(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for_symmetric_blocks(values, importance, count, 16, [&](float d, const Codes32& codes) {
    put_half(out, d);
    put_fifth_bits(out + 2, codes);
    put_nibbles(out + 6, codes);
    out += 22;
  });
}

inline constexpr Format kQ5_0{.name = "q5_0",
                              .group = 32,
                              .group_bytes = 22,
                              .quantized = true,
                              .decode = decode_blocks<integers_q5_0, false>,
                              .encode = encode_q5_0,
                              .integers = integers_q5_0,
                              .blocks = {.bits = 5, .offset = 16},
                              .units = units_of_blocks<22, unpack_q5_0>};

}  // namespace llama2cpp
