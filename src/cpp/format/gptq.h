// GPTQ: q of 2, 3, 4 or 8 bits, weight = scale * (q - zero), where a group of columns has a scale and a zero for each row.
// What libraries call in_features are our columns. All numbers lie little-endian:
//   plane 0  q       [cols * bits / 32, rows] 32-bit words: down a column of them, value k of a row is the `bits` bits
//                    from bit k * bits on (of 3 bits, 32 values fill three words, and some reach across two)
//   plane 1  scales  [groups, rows] f16; or f32, where some are no halves, and then its row_bytes are those of a group
//   plane 2  zeros   [groups, rows * bits / 32] 32-bit words, the same way along a row of them. Version 1 stores
//                    (zero - 1) modulo 2^bits, version 2 the zero itself
//   plane 3  g_idx   [cols] i32, the group of each column; without it column k is of group k / Weight::group
// The planes are no rows of the weight, so their row_bytes are 0 but for that. Panels of blocks hold scales as halves, so a
// weight with others is decoded to floats (in_blocks is false). Readers have checked the shapes and g_idx, and where
// there is g_idx they may give an order that makes column k of it of group k / Weight::group.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "format/blocks.h"

namespace llama2cpp {

inline std::uint32_t word_at(const std::byte* words, std::int64_t index) {
  std::uint32_t word = 0;
  std::memcpy(&word, words + index * 4, sizeof(word));
  return word;
}

// Value `index` of a stream of words that lie `stride` words apart.
template <int kBits>
int packed_value(const std::byte* words, std::int64_t stride, std::int64_t index) {
  const std::int64_t bit = index * kBits;
  const std::int64_t shift = bit % 32;
  std::uint32_t value = word_at(words, bit / 32 * stride) >> shift;
  if (shift + kBits > 32) value |= word_at(words, (bit / 32 + 1) * stride) << (32 - shift);
  return static_cast<int>(value & ((1U << kBits) - 1U));
}

struct GptqGroup {
  float scale;
  int zero;
};

// Of one row. A mapped file may change after its reader has looked: the group is held within the planes.
template <int kBits, int kStoredLess>
GptqGroup gptq_group(const Weight& weight, std::int64_t row, std::int64_t group) {
  const Plane& scales = weight.planes[1];
  const std::int64_t group_bytes = scales.row_bytes != 0 ? scales.row_bytes : weight.rows * 2;
  group = std::min(group, static_cast<std::int64_t>(scales.bytes) / group_bytes - 1);
  const std::byte* const zeros = weight.planes[2].data + group * (weight.rows * kBits / 32) * 4;
  const std::byte* const of_group = scales.data + group * group_bytes;
  return {.scale = scales.row_bytes != 0 ? std::bit_cast<float>(word_at(of_group, row)) : half_at(of_group + row * 2),
          .zero = (packed_value<kBits>(zeros, 1, row) + kStoredLess) & ((1 << kBits) - 1)};
}

template <int kBits, int kStoredLess>
void decode_gptq(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out) {
  const std::byte* const q = weight.planes[0].data + row * 4;
  const std::byte* const g_idx = weight.planes[3].data;
  std::int64_t of_last = -1;
  GptqGroup group{};
  for (std::int64_t k = begin; k < begin + count; ++k) {
    const std::int64_t index = g_idx == nullptr ? k / weight.group : std::int64_t{word_at(g_idx, k)};
    if (index != of_last) group = gptq_group<kBits, kStoredLess>(weight, row, index);
    of_last = index;
    out[k - begin] = group.scale * static_cast<float>(packed_value<kBits>(q, weight.rows, k) - group.zero);
  }
}

// Numbers of 8 bits are stored as signed ones.
template <int kBits>
inline constexpr int kGptqOffset = kBits == 8 ? 128 : 0;

template <int kBits, int kStoredLess>
void integers_gptq(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) {
  constexpr int kWhole = 32 / kBits;  // values that a word has to itself
  const std::byte* const q = weight.planes[0].data + row * 4;
  const auto put = [&](std::size_t k, int value) { out.q[k] = static_cast<std::int8_t>(value - kGptqOffset<kBits>); };
  if (weight.order) {
    const std::byte* const order = weight.order.data() + block * 32 * 4;
    for (std::size_t k = 0; k < 32; ++k) {
      put(k, packed_value<kBits>(q, weight.rows, word_at(order, static_cast<std::int64_t>(k))));
    }
  } else if constexpr (32 % kBits == 0) {
    for (std::size_t k = 0; k < 32; k += kWhole) {
      const std::uint32_t word = word_at(q, (block * kBits + static_cast<std::int64_t>(k) / kWhole) * weight.rows);
      for (int i = 0; i < kWhole; ++i) {
        put(k + static_cast<std::size_t>(i), static_cast<int>(word >> i * kBits & ((1U << kBits) - 1U)));
      }
    }
  } else {
    for (std::size_t k = 0; k < 32; ++k) {
      put(k, packed_value<kBits>(q, weight.rows, block * 32 + static_cast<std::int64_t>(k)));
    }
  }
  const GptqGroup group = gptq_group<kBits, kStoredLess>(weight, row, block * 32 / weight.group);
  out.d = group.scale;
  out.zero = group.zero - kGptqOffset<kBits>;
}

// One word's values as bytes.
template <int kBits>
void spread_word(std::uint32_t word, std::uint8_t* codes) {
  static_assert(kBits == 4 || kBits == 8);
  std::uint64_t bytes = word;
  if constexpr (kBits == 4) {
    bytes = (bytes | bytes << 16) & 0x0000FFFF0000FFFFU;
    bytes = (bytes | bytes << 8) & 0x00FF00FF00FF00FFU;
    bytes = (bytes | bytes << 4) & 0x0F0F0F0F0F0F0F0FU;
  }
  std::memcpy(codes, &bytes, 32 / kBits);
}

// Rows are the inner loop: theirs are the words that lie together.
template <int kBits, int kStoredLess>
void units_gptq(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t block, std::int64_t count,
                UnitRow* out) {
  const std::byte* const q = weight.planes[0].data + row * 4;
  if ((kBits == 4 || kBits == 8) && !weight.order) {
    for (std::int64_t i = 0; i < count * kBits; ++i) {
      const std::byte* const words = q + (block * kBits + i) * weight.rows * 4;
      for (std::int64_t r = 0; r < rows; ++r) {
        spread_word<kBits == 4 ? 4 : 8>(word_at(words, r), out[r].codes.data() + i * (32 / kBits));
      }
    }
  } else {
    for (std::int64_t k = 0; k < count * 32; ++k) {
      const std::int64_t place = block * 32 + k;
      const std::int64_t column = weight.order ? std::int64_t{word_at(weight.order.data(), place)} : place;
      for (std::int64_t r = 0; r < rows; ++r) {
        out[r].codes[static_cast<std::size_t>(k)] =
            static_cast<std::uint8_t>(packed_value<kBits>(q + r * 4, weight.rows, column));
      }
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const std::int64_t group = (block + i) * 32 / weight.group;
    const bool same = i > 0 && group == (block + i - 1) * 32 / weight.group;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (same) {
        out[r].d[at] = out[r].d[at - 1];
        out[r].zero[at] = out[r].zero[at - 1];
        continue;
      }
      const GptqGroup found = gptq_group<kBits, kStoredLess>(weight, row + r, group);
      out[r].d[at] = float_to_half(found.scale);
      out[r].zero[at] = static_cast<std::uint8_t>(found.zero - kGptqOffset<kBits>);
    }
  }
}

// Each Weight says its own group. Nothing is encoded through a Format, as one plane could not hold the scales:
// gptq_encode.h writes all of them.
template <int kBits, int kStoredLess>
constexpr Format gptq_format(std::string_view name) {
  return {.name = name,
          .group = 0,
          .group_bytes = 0,
          .quantized = true,
          .decode = decode_gptq<kBits, kStoredLess>,
          .encode = nullptr,
          .integers = integers_gptq<kBits, kStoredLess>,
          .blocks = {.bits = kBits, .offset = kGptqOffset<kBits>, .zeros = true},
          .units = units_gptq<kBits, kStoredLess>};
}

inline constexpr Format kGptq2 = gptq_format<2, 1>("gptq2");
inline constexpr Format kGptq3 = gptq_format<3, 1>("gptq3");
inline constexpr Format kGptq4 = gptq_format<4, 1>("gptq4");
inline constexpr Format kGptq8 = gptq_format<8, 1>("gptq8");
inline constexpr Format kGptq2V2 = gptq_format<2, 0>("gptq2_v2");
inline constexpr Format kGptq3V2 = gptq_format<3, 0>("gptq3_v2");
inline constexpr Format kGptq4V2 = gptq_format<4, 0>("gptq4_v2");
inline constexpr Format kGptq8V2 = gptq_format<8, 0>("gptq8_v2");

}  // namespace llama2cpp
