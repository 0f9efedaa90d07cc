// llama2.c's version 2: signed bytes, and one float32 scale for each group of them. Plane 0 holds the values
// [rows, cols], plane 1 the scales [rows, cols / group]; weight = value * scale. The group divides cols.
#pragma once

#include <cstring>

#include "format/format.h"

namespace llama2cpp {

inline void decode_int8_group(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count,
                              float* out) {
  const std::int64_t group = weight.group;
  const std::byte* values = weight.planes[0].data + row * weight.planes[0].row_bytes + begin;
  const std::byte* scales = weight.planes[1].data + row * weight.planes[1].row_bytes + begin / group * 4;
  for (std::int64_t first = 0; first < count; first += group, scales += sizeof(float)) {
    float scale = 0.0F;
    std::memcpy(&scale, scales, sizeof(scale));  // the scales follow bytes: they may begin anywhere
    for (std::int64_t i = first; i < first + group; ++i) {
      out[i] = static_cast<float>(static_cast<std::int8_t>(values[i])) * scale;
    }
  }
}

// Each Weight says its own group. Nothing is encoded through a Format: one plane could not hold the scales.
inline constexpr Format kInt8Group{"int8_group", 0, 0, true, decode_int8_group, nullptr};

}  // namespace llama2cpp
