// IEEE binary16, little-endian, rows one after another. Every value is exact in float32.
#pragma once

#include "format/encode.h"

namespace llama2cpp {

inline void decode_f16(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::byte* from = weight.planes[0].data + row * weight.planes[0].row_bytes + begin * 2;
  for (std::int64_t i = 0; i < count; ++i) out[i] = half_at(from + i * 2);
}

// To nearest even; what is too large becomes infinity.
inline void encode_f16(const float* values, const float* /*importance*/, std::int64_t count, std::byte* out) {
  for (std::int64_t i = 0; i < count; ++i) put_half(out + i * 2, values[i]);
}

inline constexpr Format kF16{"f16", 1, 2, false, decode_f16, encode_f16};

}  // namespace llama2cpp
