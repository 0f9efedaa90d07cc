// GGUF's IQ4_NL: 32 weights in 18 bytes, weight = d * v[q], where v is a table of 16 whole numbers.
//   d   f16           byte 0
//   q   4 bits [32]   byte 2: byte i holds weight i in its low half and weight i + 16 in its high half
#pragma once

#include "format/blocks.h"

namespace llama2cpp {

// Near together around 0, where most weights are.
inline constexpr std::array<std::int8_t, 16> kIq4Values = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                           1,    13,   25,  38,  53,  69,  89,  113};

// 16 bytes of places in a table.
inline void take_values(const std::byte* p, const std::array<std::int8_t, 16>& values, IntegerBlock& out) {
  for (std::size_t i = 0; i < 16; ++i) {
    out.q[i] = values[byte_at(p + i) & 15U];
    out.q[i + 16] = values[byte_at(p + i) >> 4];
  }
}

inline void integers_iq4_nl(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 18);
  out.d = half_at(p);
  take_values(p + 2, kIq4Values, out);
}

// As q8_0 in panels: the table's numbers take 8 bits.
inline constexpr Format kIQ4_NL{.name = "iq4_nl",
                                .group = 32,
                                .group_bytes = 18,
                                .quantized = true,
                                .decode = decode_blocks<integers_iq4_nl, false>,
                                .encode = nullptr,
                                .integers = integers_iq4_nl,
                                .blocks = {.bits = 8, .offset = 128}};

}  // namespace llama2cpp
