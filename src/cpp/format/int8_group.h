// llama2.c's version 2: signed bytes, and one float32 scale for each group of them. Plane 0 holds the values
// [rows, cols], plane 1 the scales [rows, cols / group]; weight = value * scale. The group divides cols.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "format/format.h"

namespace llama2cpp {

// matmul adds up the products of a group in 32 bits before its scales come. llama2.c's are at most 127 * 127; a file may hold
// -128 as well, and twice as many columns of those would still fit. This is the limit that files have.
inline constexpr std::int64_t kMostInt8Group = 65'536;
static_assert(kMostInt8Group * 128 * 127 < std::int64_t{1} << 31);

// Takes any range: a group need not divide the blocks in which weights are read.
inline void decode_int8_group(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count,
                              float* out) {
  const std::byte* values = weight.planes[0].data + row * weight.planes[0].row_bytes;
  const std::byte* scales = weight.planes[1].data + row * weight.planes[1].row_bytes;
  const std::int64_t end = begin + count;
  for (std::int64_t i = begin; i < end;) {
    const std::int64_t group = i / weight.group;
    float scale = 0.0F;
    std::memcpy(&scale, scales + group * 4, sizeof(scale));  // the scales follow bytes: they may begin anywhere
    for (const std::int64_t last = std::min(end, (group + 1) * weight.group); i < last; ++i) {
      *out++ = static_cast<float>(static_cast<std::int8_t>(values[i])) * scale;
    }
  }
}

// `count` values, whole groups of them, as llama2.c's export rounds: the largest magnitude of a group becomes 127, halves
// go to even. The scale of a group of zeros is 0.
inline void encode_int8_group(const float* values, std::int64_t count, std::int64_t group, std::int8_t* out,
                              float* scales) {
  for (std::int64_t begin = 0; begin < count; begin += group) {
    float largest = 0.0F;
    for (std::int64_t i = begin; i < begin + group; ++i) largest = std::max(largest, std::fabs(values[i]));
    const float scale = largest / 127.0F;
    *scales++ = scale;
    for (std::int64_t i = begin; i < begin + group; ++i) {
      const float q = scale == 0.0F ? 0.0F : std::nearbyint(values[i] / scale);
      out[i] = static_cast<std::int8_t>(std::clamp(q, -127.0F, 127.0F));  // the least scales are not exact
    }
  }
}

// Each Weight says its own group. Nothing is encoded through a Format: one plane could not hold the scales.
inline constexpr Format kInt8Group{"int8_group", 0, 0, true, decode_int8_group, nullptr};

}  // namespace llama2cpp
