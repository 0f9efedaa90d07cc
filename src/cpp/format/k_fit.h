// The search for a K-quant's numbers: 256 weights, a scale (and for some a minimum) for each group of 16 or 32 of them as
// a small integer, times one or two halves for all. What is sought is the least sum of squared errors, each weighed by
// the weight's importance: first for each group alone, then for all with what the block can store.
#pragma once

#include "format/encode.h"

namespace llama2cpp {

// weight = (d * scales[g]) * (codes[k] - offset) - dmin * minima[g], where g = k / group
struct KBlock {
  std::uint16_t d = 0;     // f16
  std::uint16_t dmin = 0;  // f16
  std::array<int, 16> scales{};
  std::array<int, 16> minima{};
  std::array<std::uint8_t, 256> codes{};
};

// Whether this processor has registers of eight floats. Results are the same bits either way.
bool fits_in_registers();

// Groups of kGroup weights. `x` [256] are finite; `importance` [256] is 0 or more, null for all alike.

// Codes in [0, max_code], scales and minima in [0, max_scale]: Q2_K, Q4_K, Q5_K.
template <int kGroup>
KBlock fit_affine(const float* x, const float* importance, int max_code, int max_scale,
                  bool in_registers = fits_in_registers());

// Codes in [0, 2 * half_range) with that offset, scales in [-half_scale, half_scale): Q3_K, Q6_K.
template <int kGroup>
KBlock fit_symmetric(const float* x, const float* importance, int half_range, int half_scale,
                     bool in_registers = fits_in_registers());

extern template KBlock fit_affine<16>(const float*, const float*, int, int, bool);
extern template KBlock fit_affine<32>(const float*, const float*, int, int, bool);
extern template KBlock fit_symmetric<16>(const float*, const float*, int, int, bool);

using KCodes = std::array<std::uint8_t, 256>;

// 64 bytes: byte i of 32 gets two bits, from `shift` on, of codes i, i + 32, i + 64 and i + 96; then the other 128.
inline void put_two_bits(std::byte* p, const KCodes& codes, int shift) {
  for (std::size_t half = 0; half < 2; ++half) {
    for (std::size_t i = 0; i < 32; ++i) {
      std::uint32_t byte = 0;
      for (std::size_t j = 0; j < 4; ++j) byte |= (codes[half * 128 + j * 32 + i] >> shift & 3U) << (2 * j);
      put_byte(p + half * 32 + i, byte);
    }
  }
}

// 32 bytes: bit j of byte i gets bit `shift` of code i + 32 * j.
inline void put_top_bits(std::byte* p, const KCodes& codes, int shift) {
  for (std::size_t i = 0; i < 32; ++i) {
    std::uint32_t byte = 0;
    for (std::size_t j = 0; j < 8; ++j) byte |= (codes[j * 32 + i] >> shift & 1U) << j;
    put_byte(p + i, byte);
  }
}

// Q4_K's and Q5_K's 128 bytes of low halves: byte i of 32 gets codes i and i + 32; so three times more.
inline void put_k_nibbles(std::byte* p, const KCodes& codes) {
  for (std::size_t part = 0; part < 4; ++part) {
    for (std::size_t i = 0; i < 32; ++i) {
      put_byte(p + part * 32 + i, (codes[part * 64 + i] & 15U) | (codes[part * 64 + 32 + i] & 15U) << 4);
    }
  }
}

// The 16 bytes that Q4_K and Q5_K begin with; see k_scale_and_minimum.
inline void put_k_scales(std::byte* p, const KBlock& block) {
  put_u16(p, block.d);
  put_u16(p + 2, block.dmin);
  for (std::size_t i = 0; i < 4; ++i) {
    const auto low = static_cast<std::uint32_t>(block.scales[i]),
               high = static_cast<std::uint32_t>(block.scales[i + 4]);
    const auto low_m = static_cast<std::uint32_t>(block.minima[i]);
    const auto high_m = static_cast<std::uint32_t>(block.minima[i + 4]);
    put_byte(p + 4 + i, low | high >> 4 << 6);
    put_byte(p + 8 + i, low_m | high_m >> 4 << 6);
    put_byte(p + 12 + i, (high & 15U) | (high_m & 15U) << 4);
  }
}

}  // namespace llama2cpp
