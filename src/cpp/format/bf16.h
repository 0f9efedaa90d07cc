// bfloat16, little-endian: the upper half of a float32. Rows one after another.
#pragma once

#include <bit>

#include "format/blocks.h"

namespace llama2cpp {

inline void decode_bf16(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::byte* from = weight.planes[0].data + row * weight.planes[0].row_bytes + begin * 2;
  for (std::int64_t i = 0; i < count; ++i)
    out[i] = std::bit_cast<float>(static_cast<std::uint32_t>(u16_at(from + i * 2)) << 16);
}

inline constexpr Format kBF16{"bf16", 1, 2, false, decode_bf16, nullptr};

}  // namespace llama2cpp
