// What the encoders share: storing fields, and rounding as ggml's reference does, so that files agree byte for byte.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "format/blocks.h"

namespace llama2cpp {

inline void put_byte(std::byte* p, std::uint32_t value) { *p = static_cast<std::byte>(value & 255U); }

inline void put_u16(std::byte* p, std::uint16_t value) { std::memcpy(p, &value, sizeof(value)); }

inline void put_half(std::byte* p, float value) { put_u16(p, float_to_half(value)); }

// 1 / scale, and 0 for a scale that is 0 or so small that there is no inverse: as f16 it is 0 all the same.
inline float inverse_of(float scale) {
  const float inverse = scale == 0.0F ? 0.0F : 1.0F / scale;
  return std::isfinite(inverse) ? inverse : 0.0F;
}

using Codes32 = std::array<std::uint32_t, 32>;  // what a block stores of each weight, offset included

// Of `x` [32], the first of those with the largest magnitude becomes -`half_range`; code = q + half_range. Returns d.
inline float symmetric_codes(const float* x, int half_range, Codes32& codes) {
  float largest = x[0];
  for (int i = 1; i < 32; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  const auto offset = static_cast<float>(half_range);
  const float d = largest / -offset;
  const float inverse = inverse_of(d);
  for (std::size_t i = 0; i < 32; ++i) {
    const float code = std::min(x[i] * inverse + (offset + 0.5F), 2.0F * offset - 1.0F);
    codes[i] = static_cast<std::uint32_t>(code);
  }
  return d;
}

struct Affine {
  float d;
  float minimum;
};

// The least of `x` [32] becomes code 0 and the largest `max_code`.
inline Affine affine_codes(const float* x, int max_code, Codes32& codes) {
  const auto [least, largest] = std::minmax_element(x, x + 32);
  const float minimum = *least;
  const float d = (*largest - minimum) / static_cast<float>(max_code);
  const float inverse = inverse_of(d);
  for (std::size_t i = 0; i < 32; ++i) {
    const float code = std::min((x[i] - minimum) * inverse + 0.5F, static_cast<float>(max_code));
    codes[i] = static_cast<std::uint32_t>(code);
  }
  return {d, minimum};
}

// The same blocks where errors weigh differently: of a search for the least sum of importance * error^2 and what is above,
// the better. Numbers are those that the block's halves can store.
float fitted_symmetric_codes(const float* x, const float* importance, int half_range, Codes32& codes);
Affine fitted_affine_codes(const float* x, const float* importance, int max_code, Codes32& codes);

// Byte i of 16 gets the low halves of codes i and i + 16.
inline void put_nibbles(std::byte* p, const Codes32& codes) {
  for (std::size_t i = 0; i < 16; ++i) put_byte(p + i, (codes[i] & 15U) | (codes[i + 16] & 15U) << 4);
}

// Bit i of four bytes gets the fifth bit of code i.
inline void put_fifth_bits(std::byte* p, const Codes32& codes) {
  std::uint32_t bits = 0;
  for (std::size_t i = 0; i < 32; ++i) bits |= (codes[i] >> 4 & 1U) << i;
  std::memcpy(p, &bits, sizeof(bits));
}

}  // namespace llama2cpp
