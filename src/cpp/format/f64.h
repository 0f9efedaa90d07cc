// IEEE binary64, little-endian, rows one after another. Values are rounded to float32 as they are read, to nearest even;
// what is too large becomes infinity.
#pragma once

#include <cstring>

#include "format/format.h"

namespace llama2cpp {

inline void decode_f64(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::byte* from = weight.planes[0].data + row * weight.planes[0].row_bytes + begin * 8;
  for (std::int64_t i = 0; i < count; ++i) {
    double value = 0;
    std::memcpy(&value, from + i * 8, sizeof(value));
    out[i] = static_cast<float>(value);
  }
}

inline constexpr Format kF64{"f64", 1, 8, false, decode_f64, nullptr};

}  // namespace llama2cpp
