// Writing panels: a transposition of 16 rows.
#include "backend/cpu/panels.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "backend/cpu/llm_int8_panels.h"
#include "format/bf16.h"
#include "format/q4_0.h"
#include "format/q4_1.h"
#include "format/unit_row.h"

namespace llama2cpp {
namespace {

// 16 rows of kBlock numbers, of which `count` are there, become columns.             from [16][kBlock] -> out [count][16]
template <class T>
void transpose(const T* from, std::int64_t count, T* out) {
  for (std::int64_t k = 0; k < count; ++k, out += kPanelRows) {
    for (std::int64_t r = 0; r < kPanelRows; ++r) out[r] = from[r * kBlock + k];
  }
}

void pack_f32(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t count,
              std::byte* out) {
  std::array<std::uint32_t, kPanelRows * kBlock> values;
  for (std::int64_t r = 0; r < rows; ++r) {
    weight.format->decode(weight, first_row + r, begin, count, reinterpret_cast<float*>(values.data() + r * kBlock));
  }
  std::fill(values.begin() + rows * kBlock, values.end(), 0U);
  transpose(values.data(), count, reinterpret_cast<std::uint32_t*>(out));
}

void pack_half(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t count,
               std::byte* out) {
  std::array<std::uint16_t, kPanelRows * kBlock> values;
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::byte* from = weight.planes[0].data + (first_row + r) * weight.planes[0].row_bytes + begin * 2;
    std::memcpy(values.data() + r * kBlock, from, static_cast<std::size_t>(count) * 2);
  }
  std::fill(values.begin() + rows * kBlock, values.end(), std::uint16_t{0});
  transpose(values.data(), count, reinterpret_cast<std::uint16_t*>(out));
}

// Pairs of neighbouring columns, a last one with zeros.                             -> out [(count + 1) / 2][16]
void pack_pairs(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t count,
                std::byte* out) {
  const std::int64_t pairs = (count + 1) / 2;
  std::array<float, kBlock> row;
  std::array<std::uint16_t, kBlock> rounded;
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    rounded.fill(0);
    if (r < rows && weight.format == &kBF16) {
      const std::byte* from = weight.planes[0].data + (first_row + r) * weight.planes[0].row_bytes + begin * 2;
      std::memcpy(rounded.data(), from, static_cast<std::size_t>(count) * 2);
    } else if (r < rows) {
      weight.format->decode(weight, first_row + r, begin, count, row.data());
      for (std::int64_t k = 0; k < count; ++k) {
        rounded[static_cast<std::size_t>(k)] = float_to_bf16(row[static_cast<std::size_t>(k)]);
      }
    }
    for (std::int64_t k = 0; k < pairs; ++k) std::memcpy(out + (k * kPanelRows + r) * 4, rounded.data() + 2 * k, 4);
  }
}

// One group of one row: bytes + 128, a quad every 16 * 4 bytes.
void pack_group(const std::byte* from, std::int64_t group, std::byte* out) {
  std::int64_t k = 0;
  for (; k + 4 <= group; k += 4) {
    std::uint32_t quad = 0;
    std::memcpy(&quad, from + k, 4);
    quad ^= 0x80808080U;
    std::memcpy(out + k * kPanelRows, &quad, 4);
  }
  for (std::int64_t i = 0; k + i < group; ++i) out[k * kPanelRows + i] = from[k + i] ^ std::byte{128};
}

void pack_int8(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t count,
               std::byte* out) {
  const std::int64_t group = weight.group;
  const std::int64_t quads = quads_of(group);
  for (std::int64_t g = begin / group; g < (begin + count) / group; ++g, out += group_bytes(group)) {
    std::byte* scales = out + quads * 4 * kPanelRows;
    if (rows < kPanelRows || group % 4 != 0) {
      std::fill(out, scales, std::byte{128});
      std::fill_n(scales, kPanelRows * 4, std::byte{0});
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::byte* from = weight.planes[0].data + (first_row + r) * weight.planes[0].row_bytes + g * group;
      pack_group(from, group, out + r * 4);
      std::memcpy(scales + r * 4, weight.planes[1].data + (first_row + r) * weight.planes[1].row_bytes + g * 4, 4);
    }
  }
}

// What vector v of a plane of kWidth bits has of one row: 32 / kWidth neighbouring codes, as block_layout.h arranges them.
// Two quads lie in eight bytes; shifting them down by 32 - kWidth puts the second on top of the first.
template <int kWidth>
std::uint32_t plane_word(const std::uint8_t* codes, int from) {
  constexpr std::uint64_t kMask = 0x0101010101010101U * ((1U << kWidth) - 1U);
  std::uint32_t word = 0;
  if constexpr (kWidth == 8) {
    std::memcpy(&word, codes, sizeof(word));
  } else {
    for (int pair = 0; pair < 4 / kWidth; ++pair) {
      std::uint64_t quads = 0;
      std::memcpy(&quads, codes + pair * 8, sizeof(quads));
      quads = quads >> from & kMask;
      word |= static_cast<std::uint32_t>(quads | quads >> (32 - kWidth)) << (pair * 2 * kWidth);
    }
  }
  return word;
}

// A plane of one block, which holds bits [from, from + kWidth) of its codes.   rows [16] -> out [kWidth vectors][16]
template <int kWidth>
std::byte* pack_plane(const UnitRow* rows, std::int64_t block, int from, std::byte* out) {
  for (int v = 0; v < kWidth; ++v) {
    const std::int64_t first = block * kBlockCols + v * (kBlockCols / kWidth);
    for (std::int64_t r = 0; r < kPanelRows; ++r, out += 4) {
      const std::uint32_t word = plane_word<kWidth>(rows[r].codes.data() + first, from);
      std::memcpy(out, &word, sizeof(word));
    }
  }
  return out;
}

// The lowest bits go to the widest plane.
void pack_planes(const UnitRow* rows, std::int64_t blocks, int bits, std::byte* out) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    int from = 0;  // the lowest bit that is not in a plane yet
    if ((bits & 8) != 0) out = pack_plane<8>(rows, block, 0, out);
    if ((bits & 4) != 0) out = pack_plane<4>(rows, block, 0, out), from = 4;
    if ((bits & 2) != 0) out = pack_plane<2>(rows, block, from, out), from += 2;
    if ((bits & 1) != 0) out = pack_plane<1>(rows, block, from, out);
  }
}

// A field of 16 f16 or of 16 bytes, one number of each row.
template <class Take>
std::byte* put_halves(const UnitRow* rows, std::byte* out, Take take) {
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    const std::uint16_t half = take(rows[r]);
    std::memcpy(out + 2 * r, &half, sizeof(half));
  }
  return out + 2 * kPanelRows;
}

template <class Take>
std::byte* put_bytes(const UnitRow* rows, std::byte* out, Take take) {
  for (std::int64_t r = 0; r < kPanelRows; ++r) out[r] = static_cast<std::byte>(take(rows[r]));
  return out + kPanelRows;
}

// What comes before the planes, up to where the filling begins.
void pack_header(const UnitRow* rows, const BlockLayout& layout, std::int64_t blocks, std::byte* out) {
  const std::int64_t every = layout.zeros ? std::int64_t{1} << layout.share : 1;
  for (std::int64_t i = 0; i < (layout.sub_scales ? 1 : blocks); i += every) {
    const auto block = static_cast<std::size_t>(i);
    out = put_halves(rows, out, [&](const UnitRow& row) { return row.d[block]; });
    if (layout.minimum) out = put_halves(rows, out, [&](const UnitRow& row) { return row.dm[block]; });
    if (layout.zeros) out = put_bytes(rows, out, [&](const UnitRow& row) { return row.zero[block]; });
  }
  for (std::int64_t i = 0; layout.sub_scales && i < blocks; ++i) {
    for (const bool minimum : {false, true}) {
      for (std::int64_t h = 0; (!minimum || layout.minimum) && h < layout.halves; ++h) {
        const auto at = static_cast<std::size_t>(i * layout.halves + h);
        out = put_bytes(rows, out, [&](const UnitRow& row) { return minimum ? row.m[at] : row.sub[at]; });
      }
    }
  }
}

// GGUF's blocks of 4 bits, kBytes each: byte i of the last 16 has weight i in its low half and weight i + 16 in its high half.
// A row's halves of quads 2 v and 2 v + 1 are eight neighbouring bytes, and become its word of vector v as they are: nothing is
// unpacked to bytes on the way. The f16 fields before them go to the header.
template <std::int64_t kBytes>
void pack_nibbles(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t block,
                  std::int64_t count, std::byte* header, std::byte* out) {
  constexpr std::int64_t kFields = kBytes - 16;  // bytes of f16
  constexpr std::uint64_t kLow = 0x0F0F0F0F0F0F0F0FU;
  const std::int64_t stride = weight.planes[0].row_bytes;
  const std::byte* from = weight.planes[0].data + first_row * stride + block * kBytes;
  for (std::int64_t i = 0; i < count; ++i, from += kBytes) {
    const std::byte* p = from;
    for (std::int64_t r = 0; r < rows; ++r, p += stride, out += 4) {
      for (std::int64_t f = 0; f < kFields; f += 2) std::memcpy(header + f * kPanelRows + 2 * r, p + f, 2);
      for (std::int64_t v = 0; v < 2; ++v) {
        std::uint64_t pairs = 0;
        std::memcpy(&pairs, p + kFields + 8 * v, sizeof(pairs));
        const std::uint64_t low = pairs & kLow;
        const std::uint64_t high = pairs >> 4 & kLow;
        const auto first = static_cast<std::uint32_t>(low | low >> 28);
        const auto second = static_cast<std::uint32_t>(high | high >> 28);
        std::memcpy(out + v * 4 * kPanelRows, &first, sizeof(first));
        std::memcpy(out + (v + 2) * 4 * kPanelRows, &second, sizeof(second));
      }
    }
    header += kFields * kPanelRows;
    out += 3 * 4 * kPanelRows;
  }
}

void pack_unit(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t blocks,
               std::byte* out) {
  const BlockLayout layout = layout_of(weight);
  if (rows == kPanelRows && (weight.format == &kQ4_0 || weight.format == &kQ4_1)) {
    const std::int64_t filled = header_bytes(layout, blocks);
    std::fill_n(out, filled, std::byte{0});
    const auto pack = weight.format == &kQ4_0 ? pack_nibbles<18> : pack_nibbles<20>;
    return pack(weight, first_row, rows, begin / kBlockCols, blocks, out, out + filled);
  }
  const auto units = weight.format->units != nullptr ? weight.format->units : units_of_integers;
  UnitRow all[kPanelRows];
  units(weight, first_row, rows, begin / kBlockCols, blocks, all);
  std::fill(all + rows, all + kPanelRows, UnitRow{});
  const std::int64_t header = header_bytes(layout, blocks);
  std::fill_n(out, header, std::byte{0});
  pack_header(all, layout, blocks, out);
  pack_planes(all, blocks, layout.bits, out + header);
}

}  // namespace

void pack_panel(const Weight& weight, std::int64_t panel, std::int64_t begin, std::int64_t count, std::byte* out) {
  const std::int64_t first_row = panel * kPanelRows;
  const std::int64_t rows = std::min(kPanelRows, weight.rows - first_row);
  switch (panel_form(weight)) {
    case PanelForm::f32:
      return pack_f32(weight, first_row, rows, begin, count, out);
    case PanelForm::f16:
    case PanelForm::bf16:
      return pack_half(weight, first_row, rows, begin, count, out);
    case PanelForm::bf16_pairs:
      return pack_pairs(weight, first_row, rows, begin, count, out);
    case PanelForm::int8_group:
      return pack_int8(weight, first_row, rows, begin, count, out);
    case PanelForm::llm_int8:
      return pack_llm_int8(weight, first_row, rows, out);
    case PanelForm::blocks:
      return pack_unit(weight, first_row, rows, begin, count / kBlockCols, out);
  }
}

}  // namespace llama2cpp
