// LLM.int8() (Dettmers and others, 2022) as bitsandbytes stores it: int8 with one scale for each row, to be multiplied by
// rows of x that are int8 with one scale as well, but for columns where x is large: those are multiplied in float.
//   plane 0  q        int8 [rows, cols]
//   plane 1  largest  f32 [rows], the largest magnitude of the row: weight = q * (largest / 127)
//   plane 2  columns  i32 [n], ascending: those that are always multiplied in float. Readers check them and hold a copy
//   plane 3  f16 [rows, n], the weights of these columns, in the place of q's
// Without columns in planes 2 and 3 they are decided anew for each row of x, by Weight::outlier_threshold.
#pragma once

#include <algorithm>
#include <cmath>

#include "format/encode.h"

namespace llama2cpp {

// With more columns a sum of products could leave 32 bits.
inline constexpr std::int64_t kMostLlmInt8Columns = ((std::int64_t{1} << 31) - 1) / (128 * 127);

inline float f32_at(const std::byte* p) {
  float value = 0.0F;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

inline float llm_int8_scale(const Weight& weight, std::int64_t row) {
  return f32_at(weight.planes[1].data + row * weight.planes[1].row_bytes) / 127.0F;
}

// The columns that are always multiplied in float.
inline std::span<const std::int32_t> fixed_outliers(const Weight& weight) {
  return {reinterpret_cast<const std::int32_t*>(weight.planes[2].data), weight.planes[2].bytes / sizeof(std::int32_t)};
}

// Takes any range.
inline void decode_llm_int8(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count,
                            float* out) {
  const std::byte* const q = weight.planes[0].data + row * weight.planes[0].row_bytes + begin;
  const float scale = llm_int8_scale(weight, row);
  for (std::int64_t k = 0; k < count; ++k) out[k] = static_cast<float>(static_cast<std::int8_t>(q[k])) * scale;
  const std::span<const std::int32_t> columns = fixed_outliers(weight);
  const std::byte* const halves = weight.planes[3].data + row * weight.planes[3].row_bytes;
  for (auto column = std::ranges::lower_bound(columns, begin); column != columns.end(); ++column) {
    if (*column >= begin + count) break;
    out[*column - begin] = half_at(halves + 2 * (column - columns.begin()));
  }
}

// One row as bitsandbytes rounds it: taken to f16, times the inverse times 127 (PyTorch divides so), halves to even.
// Returns its largest magnitude.
inline float encode_llm_int8(const float* values, std::int64_t cols, std::int8_t* q) {
  const auto half = [&](std::int64_t k) { return half_to_float(float_to_half(values[k])); };
  float largest = 0.0F;
  for (std::int64_t k = 0; k < cols; ++k) largest = std::max(largest, std::fabs(half(k)));
  const float factor = largest == 0.0F ? 0.0F : 1.0F / largest * 127.0F;
  for (std::int64_t k = 0; k < cols; ++k) q[k] = static_cast<std::int8_t>(std::nearbyint(half(k) * factor));
  return largest;
}

// A row is a group. Nothing is encoded through a Format: one plane could not hold the scales.
inline constexpr Format kLlmInt8{"llm_int8", 0, 0, true, decode_llm_int8, nullptr};

}  // namespace llama2cpp
