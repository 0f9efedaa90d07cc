// GGUF's Q8_0: 32 weights in 34 bytes, weight = d * q.
//   d   f16           byte 0
//   q   int8 [32]     byte 2
#pragma once

#include "format/blocks.h"

namespace llama2cpp {

inline void integers_q8_0(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 34);
  out.d = half_at(p);
  std::memcpy(out.q.data(), p + 2, 32);
}

inline constexpr Format kQ8_0{.name = "q8_0",
                              .group = 32,
                              .group_bytes = 34,
                              .quantised = true,
                              .decode = decode_blocks<integers_q8_0, false>,
                              .encode = nullptr,
                              .integers = integers_q8_0,
                              .blocks = {.bits = 8, .offset = 128}};

}  // namespace llama2cpp
