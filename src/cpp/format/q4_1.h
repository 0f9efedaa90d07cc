// GGUF's Q4_1: 32 weights in 20 bytes, weight = d * q + m.
//   d   f16           byte 0
//   m   f16           byte 2
//   q   4 bits [32]   byte 4: byte i holds weight i in its low half and weight i + 16 in its high half
#pragma once

#include "format/encode.h"

namespace llama2cpp {

inline void integers_q4_1(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 20);
  out.d = half_at(p);
  out.dm = half_at(p + 2);
  out.m = {1, 1};
  for (std::size_t i = 0; i < 16; ++i) {
    const int pair = byte_at(p + 4 + i);
    out.q[i] = static_cast<std::int8_t>(pair & 15);
    out.q[i + 16] = static_cast<std::int8_t>(pair >> 4);
  }
}

inline void unpack_q4_1(const std::byte* p, std::uint8_t* codes, std::size_t i, UnitRow& out) {
  out.d[i] = UnitRow::half(p);
  out.dm[i] = UnitRow::half(p + 2);
  low_and_high_halves(p + 4, codes);
}

// As ggml's reference, where all errors count alike.
inline void encode_q4_1(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for_affine_blocks(values, importance, count, 15, [&](float d, float minimum, const Codes32& codes) {
    put_half(out, d);
    put_half(out + 2, minimum);
    put_nibbles(out + 4, codes);
    out += 20;
  });
}

inline constexpr Format kQ4_1{.name = "q4_1",
                              .group = 32,
                              .group_bytes = 20,
                              .quantized = true,
                              .decode = decode_blocks<integers_q4_1, true>,
                              .encode = encode_q4_1,
                              .integers = integers_q4_1,
                              .blocks = {.bits = 4, .minimum = true},
                              .units = units_of_blocks<20, unpack_q4_1>};

}  // namespace llama2cpp
