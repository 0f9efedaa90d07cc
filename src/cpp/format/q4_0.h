// GGUF's Q4_0: 32 weights in 18 bytes, weight = d * (q - 8).
//   d   f16           byte 0
//   q   4 bits [32]   byte 2: byte i holds weight i in its low half and weight i + 16 in its high half
#pragma once

#include "format/encode.h"

namespace llama2cpp {

inline void integers_q4_0(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 18);
  out.d = half_at(p);
  for (std::size_t i = 0; i < 16; ++i) {
    const int pair = byte_at(p + 2 + i);
    out.q[i] = static_cast<std::int8_t>((pair & 15) - 8);
    out.q[i + 16] = static_cast<std::int8_t>((pair >> 4) - 8);
  }
}

inline void unpack_q4_0(const std::byte* p, std::uint8_t* codes, std::size_t i, UnitRow& out) {
  out.d[i] = UnitRow::half(p);
  low_and_high_halves(p + 2, codes);
}

// As ggml's reference, where all errors count alike.
inline void encode_q4_0(const float* values, const float* importance, std::int64_t count, std::byte* out) {
  for_symmetric_blocks(values, importance, count, 8, [&](float d, const Codes32& codes) {
    put_half(out, d);
    put_nibbles(out + 2, codes);
    out += 18;
  });
}

inline constexpr Format kQ4_0{.name = "q4_0",
                              .group = 32,
                              .group_bytes = 18,
                              .quantized = true,
                              .decode = decode_blocks<integers_q4_0, false>,
                              .encode = encode_q4_0,
                              .integers = integers_q4_0,
                              .blocks = {.bits = 4, .offset = 8},
                              .units = units_of_blocks<18, unpack_q4_0>};

}  // namespace llama2cpp
