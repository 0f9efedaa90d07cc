// What GGUF's block formats share: reading fields that may lie at any byte, and decoding through the whole numbers.
#pragma once

#include <cstring>

#include "core/half.h"
#include "format/format.h"
#include "format/unit_row.h"

namespace llama2cpp {

inline std::uint8_t byte_at(const std::byte* p) { return static_cast<std::uint8_t>(*p); }

inline std::uint16_t u16_at(const std::byte* p) {
  std::uint16_t value = 0;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

inline float half_at(const std::byte* p) { return half_to_float(u16_at(p)); }

// The `index`th block of a row, for blocks of `bytes` bytes.
inline const std::byte* block_at(const Weight& weight, std::int64_t row, std::int64_t index, std::int64_t bytes) {
  return weight.planes[0].data + row * weight.planes[0].row_bytes + index * bytes;
}

// The 6-bit scales and minima of Q4_K and Q5_K, eight of each in 12 bytes: `p` [12], `i` in [0, 8).
//   bytes 0-3: scale 0-3, on top the high 2 bits of scale 4-7;  bytes 4-7: minimum 0-3, on top those of minimum 4-7;
//   bytes 8-11: the low 4 bits of scale 4-7, and above them those of minimum 4-7
inline void k_scale_and_minimum(const std::byte* p, std::int64_t i, std::int32_t& scale, std::int32_t& minimum) {
  if (i < 4) {
    scale = byte_at(p + i) & 63;
    minimum = byte_at(p + 4 + i) & 63;
  } else {
    scale = (byte_at(p + 4 + i) & 15) | (byte_at(p + i - 4) >> 6 << 4);
    minimum = (byte_at(p + 4 + i) >> 4) | (byte_at(p + i) >> 6 << 4);
  }
}

// The scales that Q4_K and Q5_K begin a block `p` with, of the 32 weights that are its `part`th.
inline void read_k_scales(const std::byte* p, std::int64_t part, IntegerBlock& out) {
  out.d = half_at(p);
  out.dm = -half_at(p + 2);
  k_scale_and_minimum(p + 4, part, out.sub[0], out.m[0]);
  out.sub[1] = out.sub[0];
  out.m[1] = out.m[0];
}

// Format::units, for formats whose blocks of 32 columns have kBytes bytes each; kUnpack takes one of them.
template <std::int64_t kBytes, auto kUnpack>
void units_of_blocks(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t block, std::int64_t count,
                     UnitRow* out) {
  for (const UnitRow* const end = out + rows; out < end; ++row, ++out) {
    const std::byte* p = block_at(weight, row, block, kBytes);
    for (std::int64_t i = 0; i < count; ++i, p += kBytes) {
      kUnpack(p, out->codes.data() + i * kBlockCols, static_cast<std::size_t>(i), *out);
    }
  }
}

// The same for blocks of 256 columns: a unit is one of them.
template <std::int64_t kBytes, auto kUnpack>
void units_of_256(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t block, std::int64_t /*count*/,
                  UnitRow* out) {
  for (const UnitRow* const end = out + rows; out < end; ++row, ++out) {
    kUnpack(block_at(weight, row, block / kUnitBlocks, kBytes), out->codes.data(), *out);
  }
}

// The scales that Q4_K and Q5_K begin a block with.
inline void unpack_k_scales(const std::byte* p, UnitRow& out) {
  out.d[0] = UnitRow::half(p);
  out.dm[0] = UnitRow::minus(UnitRow::half(p + 2));
  for (std::int64_t part = 0; part < kUnitBlocks; ++part) {
    std::int32_t scale = 0;
    std::int32_t minimum = 0;
    k_scale_and_minimum(p + 4, part, scale, minimum);
    out.sub[static_cast<std::size_t>(part)] = static_cast<std::uint8_t>(scale);
    out.m[static_cast<std::size_t>(part)] = static_cast<std::uint8_t>(minimum);
  }
}

// 32 bytes for each 64 weights: weight i in the low half of byte i, weight i + 32 in its high half. -> codes [256]
inline void unpack_k_nibbles(const std::byte* q, std::uint8_t* codes) {
  for (int i = 0; i < 4; ++i, q += 32, codes += 64) {
    add_bits<0, 4, 0>(q, 32, codes);
    add_bits<4, 4, 0>(q, 32, codes + 32);
  }
}

// Format::decode in float32: d * sub is exact, and so is dm * m; the product with q and the sum are rounded.
template <auto kIntegers, bool kMinimum>
void decode_blocks(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  for (std::int64_t block = begin / 32; block < (begin + count) / 32; ++block, out += 32) {
    IntegerBlock b;
    kIntegers(weight, row, block, b);
    for (std::size_t h = 0; h < 2; ++h) {
      const float scale = b.d * static_cast<float>(b.sub[h]);
      const float minimum = b.dm * static_cast<float>(b.m[h]);
      for (std::size_t k = h * 16; k < h * 16 + 16; ++k) {
        const float value = scale * static_cast<float>(b.q[k]);
        out[k] = kMinimum ? value + minimum : value;  // without a minimum, not even 0 is added: it would lose -0
      }
    }
  }
}

}  // namespace llama2cpp
