// GGUF's IQ4_XS: 256 weights in 136 bytes, weight = (d * (s - 32)) * v[q], with s for each 32 and IQ4_NL's table v.
//   d   f16           byte 0
//   h   2 bits [8]    byte 2: the high bits of s, the first lowest
//   s   4 bits [8]    byte 4: the low bits of s; byte i holds s of 32 weights in its low half and of the next in its high
//   q   4 bits [256]  byte 8: 16 bytes for each 32 weights, as in IQ4_NL
#pragma once

#include "format/iq4_nl.h"

namespace llama2cpp {

inline void integers_iq4_xs(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block / 8, 136);
  const auto part = static_cast<std::size_t>(block % 8);
  out.d = half_at(p);
  const int low = byte_at(p + 4 + part / 2) >> part % 2 * 4 & 15;
  const int high = u16_at(p + 2) >> part * 2 & 3;
  out.sub = {(low | high << 4) - 32, (low | high << 4) - 32};
  take_values(p + 8 + part * 16, kIq4Values, out);
}

inline constexpr Format kIQ4_XS{.name = "iq4_xs",
                                .group = 256,
                                .group_bytes = 136,
                                .quantized = true,
                                .decode = decode_blocks<integers_iq4_xs, false>,
                                .encode = nullptr,
                                .integers = integers_iq4_xs,
                                .blocks = {.bits = 8, .offset = 128, .sub_scales = true}};

}  // namespace llama2cpp
