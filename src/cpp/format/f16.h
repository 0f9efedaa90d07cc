// IEEE binary16, little-endian, rows one after another. Every value is exact in float32.
#pragma once

#include "format/blocks.h"

namespace llama2cpp {

inline void decode_f16(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::byte* from = weight.planes[0].data + row * weight.planes[0].row_bytes + begin * 2;
  for (std::int64_t i = 0; i < count; ++i) out[i] = half_at(from + i * 2);
}

inline constexpr Format kF16{"f16", 1, 2, false, decode_f16, nullptr};

}  // namespace llama2cpp
