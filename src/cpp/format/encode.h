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

// Up to eight such blocks where errors weigh differently: of a search for the least sum of importance * error^2 and what
// is above, the better. Numbers are those that a block's halves can store. Each block's are its own, whatever the others.
struct FittedBlock {
  float d;
  float minimum;  // affine blocks have one
  Codes32 codes;
};
using FittedBlocks = std::array<FittedBlock, 8>;

// `x` and `importance` [32 * blocks], 1 to 8 blocks.
void fit_symmetric_codes(const float* x, const float* importance, std::int64_t blocks, int half_range,
                         FittedBlocks& out);
void fit_affine_codes(const float* x, const float* importance, std::int64_t blocks, int max_code, FittedBlocks& out);

// Calls put(d, codes) for each 32 of `count` values.
template <class Put>
void for_symmetric_blocks(const float* values, const float* importance, std::int64_t count, int half_range, Put put) {
  FittedBlocks fitted;
  for (std::int64_t i = 0; i < count; i += 32) {
    FittedBlock& block = fitted[static_cast<std::size_t>(i / 32 % 8)];
    if (importance == nullptr) {
      block.d = symmetric_codes(values + i, half_range, block.codes);
    } else if (i % 256 == 0) {
      fit_symmetric_codes(values + i, importance + i, std::min<std::int64_t>(8, (count - i) / 32), half_range, fitted);
    }
    put(block.d, block.codes);
  }
}

// Calls put(d, minimum, codes) for each 32 of `count` values.
template <class Put>
void for_affine_blocks(const float* values, const float* importance, std::int64_t count, int max_code, Put put) {
  FittedBlocks fitted;
  for (std::int64_t i = 0; i < count; i += 32) {
    FittedBlock& block = fitted[static_cast<std::size_t>(i / 32 % 8)];
    if (importance == nullptr) {
      const Affine affine = affine_codes(values + i, max_code, block.codes);
      block.d = affine.d;
      block.minimum = affine.minimum;
    } else if (i % 256 == 0) {
      fit_affine_codes(values + i, importance + i, std::min<std::int64_t>(8, (count - i) / 32), max_code, fitted);
    }
    put(block.d, block.minimum, block.codes);
  }
}

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
