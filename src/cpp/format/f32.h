// IEEE float32, little-endian, rows one after another.
#pragma once

#include <cstring>

#include "format/format.h"

namespace llama2cpp {

inline void decode_f32(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  // memcpy: a mapped file may place floats at any byte
  const std::byte* from = weight.planes[0].data + row * weight.planes[0].row_bytes + begin * 4;
  std::memcpy(out, from, static_cast<std::size_t>(count) * sizeof(float));
}

inline void encode_f32(const float* values, const float* /*importance*/, std::int64_t count, std::byte* out) {
  std::memcpy(out, values, static_cast<std::size_t>(count) * sizeof(float));
}

inline constexpr Format kF32{"f32", 1, 4, false, decode_f32, encode_f32};

}  // namespace llama2cpp
