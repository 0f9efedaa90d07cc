// bfloat16, little-endian: the upper half of a float32. Rows one after another.
#pragma once

#include <bit>

#include "format/encode.h"

namespace llama2cpp {

inline float bf16_to_float(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

inline void decode_bf16(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::byte* from = weight.planes[0].data + row * weight.planes[0].row_bytes + begin * 2;
  for (std::int64_t i = 0; i < count; ++i) out[i] = bf16_to_float(u16_at(from + i * 2));
}

// To nearest even; what is too large becomes infinity, a NaN stays one.
inline std::uint16_t float_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>(bits >> 16 | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

inline void encode_bf16(const float* values, const float* /*importance*/, std::int64_t count, std::byte* out) {
  for (std::int64_t i = 0; i < count; ++i) put_u16(out + i * 2, float_to_bf16(values[i]));
}

inline constexpr Format kBF16{"bf16", 1, 2, false, decode_bf16, encode_bf16};

}  // namespace llama2cpp
