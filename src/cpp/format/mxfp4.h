// GGUF's MXFP4: 32 weights in 17 bytes, weight = d * v[q], where d is a power of two and v a table of whole numbers: twice
// what floats of 4 bits are, 0 to 6 and their opposites.
//   e   byte          byte 0: d = 2^(e - 128)
//   q   4 bits [32]   byte 1: byte i holds weight i in its low half and weight i + 16 in its high half
#pragma once

#include <algorithm>
#include <cmath>

#include "format/encode.h"
#include "format/iq4_nl.h"

namespace llama2cpp {

inline constexpr std::array<std::int8_t, 16> kMxfp4Values = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

inline void integers_mxfp4(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  const std::byte* p = block_at(weight, row, block, 17);
  out.d = std::ldexp(1.0F, static_cast<int>(byte_at(p)) - 128);
  take_values(p + 1, kMxfp4Values, out);
}

// Panels hold d as f16, which has the powers from 2^-24 to 2^15; of a block of zeros any will do. Throws FormatError for
// others: models have them within a few powers of two of each other.
inline void units_mxfp4(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t block,
                        std::int64_t count, UnitRow* out) {
  units_of_integers(weight, row, rows, block, count, out);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < count; ++i) {
      IntegerBlock b;
      integers_mxfp4(weight, row + r, block + i, b);
      if (b.d >= 0x1p-24F && b.d <= 0x1p15F) continue;
      const bool zeros = std::ranges::all_of(b.q, [](std::int8_t q) { return q == 0; });
      if (!zeros) {
        throw FormatError(cat("a weight of mxfp4 has a scale of ", b.d,
                              ", expected 2^-24 to 2^15, which this version multiplies with"));
      }
      out[r].d[static_cast<std::size_t>(i)] = 0;
    }
  }
}

// As ggml's reference: the largest magnitude of a block is 4 to 8 of its floats of 4 bits, and of two that are as near the one
// whose place comes first. Numbers that such blocks stand for come back as they were.
inline void encode_mxfp4(const float* values, const float* /*importance*/, std::int64_t count, std::byte* out) {
  for (std::int64_t i = 0; i < count; i += 32, out += 17) {
    const float* x = values + i;
    float largest = 0.0F;
    for (std::size_t j = 0; j < 32; ++j) largest = std::max(largest, std::fabs(x[j]));
    // Its logarithm is a float, so that a number a hair below a power of two counts as that. Below the least power all weights
    // are 0.
    const auto log = static_cast<float>(std::log2(double{largest}));
    const int e = largest > 0.0F ? std::max(0, static_cast<int>(std::floor(log)) - 2 + 127) : 0;
    const float d = std::ldexp(1.0F, e - 128);
    Codes32 codes{};
    for (std::size_t j = 0; j < 32; ++j) {
      float least = std::fabs(x[j]);  // of place 0
      for (std::uint32_t q = 1; q < kMxfp4Values.size(); ++q) {
        const float error = std::fabs(d * static_cast<float>(kMxfp4Values[q]) - x[j]);
        if (!(error < least)) continue;
        least = error;
        codes[j] = q;
      }
    }
    put_byte(out, static_cast<std::uint32_t>(e));
    put_nibbles(out + 1, codes);
  }
}

// As q5_0 in panels: the table's numbers take 5 bits.
inline constexpr Format kMXFP4{.name = "mxfp4",
                               .group = 32,
                               .group_bytes = 17,
                               .quantized = true,
                               .decode = decode_blocks<integers_mxfp4, false>,
                               .encode = encode_mxfp4,
                               .integers = integers_mxfp4,
                               .blocks = {.bits = 5, .offset = 16},
                               .units = units_mxfp4};

}  // namespace llama2cpp
