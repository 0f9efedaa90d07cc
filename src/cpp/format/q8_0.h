// GGUF's Q8_0: 32 weights in 34 bytes, weight = d * q.
//   d   f16           byte 0
//   q   int8 [32]     byte 2
#pragma once

#include <algorithm>

#include "format/encode.h"

namespace llama2cpp {

inline void integers_q8_0(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 34);
  out.d = half_at(p);
  std::memcpy(out.q.data(), p + 2, 32);
}

inline void unpack_q8_0(const std::byte* p, std::uint8_t* codes, std::size_t i, UnitRow& out) {
  out.d[i] = UnitRow::half(p);
  for (int k = 0; k < 32; ++k) codes[k] = static_cast<std::uint8_t>(p[2 + k]) ^ 128U;
}

// As ggml's reference: the largest magnitude becomes 127, halves are rounded away from zero.
inline void encode_q8_0(const float* values, const float* /*importance*/, std::int64_t count, std::byte* out) {
  for (const float* const end = values + count; values < end; values += 32, out += 34) {
    float largest = 0.0F;
    for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(values[i]));
    const float d = largest / 127.0F;
    const float inverse = inverse_of(d);
    put_half(out, d);
    for (int i = 0; i < 32; ++i) {
      const float q = values[i] * inverse;
      const int whole = static_cast<int>(q);  // what is left is exact
      const int up = std::fabs(q - static_cast<float>(whole)) >= 0.5F ? 1 : 0;
      out[2 + i] = static_cast<std::byte>(q < 0.0F ? whole - up : whole + up);
    }
  }
}

inline constexpr Format kQ8_0{.name = "q8_0",
                              .group = 32,
                              .group_bytes = 34,
                              .quantized = true,
                              .decode = decode_blocks<integers_q8_0, false>,
                              .encode = encode_q8_0,
                              .integers = integers_q8_0,
                              .blocks = {.bits = 8, .offset = 128},
                              .units = units_of_blocks<34, unpack_q8_0>};

}  // namespace llama2cpp
