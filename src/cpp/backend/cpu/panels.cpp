// Writing panels: a transposition of 16 rows.
#include "backend/cpu/panels.h"

#include <cstring>

#include "backend/cpu/llm_int8_panels.h"
#include "core/half.h"
#include "format/bf16.h"
#include "format/f16.h"
#include "format/llm_int8.h"

namespace llama2cpp {
namespace {

// Bytes of a scale and a zero point of 16 rows.
constexpr std::int64_t kZeroEntry = 3 * kPanelRows;

void pack_f32(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t count,
              float* out) {
  float row[kBlock] = {};
  for (std::int64_t r = 0; r < kPanelRows; ++r) {
    if (r < rows) {
      weight.format->decode(weight, first_row + r, begin, count, row);
    } else {
      std::fill_n(row, count, 0.0F);
    }
    for (std::int64_t k = 0; k < count; ++k) out[k * kPanelRows + r] = row[k];
  }
}

void pack_half(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t count,
               std::uint16_t* out) {
  std::fill_n(out, count * kPanelRows, std::uint16_t{0});
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::byte* from = weight.planes[0].data + (first_row + r) * weight.planes[0].row_bytes + begin * 2;
    for (std::int64_t k = 0; k < count; ++k) std::memcpy(out + k * kPanelRows + r, from + k * 2, 2);
  }
}

void pack_int8(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t count,
               std::byte* out) {
  const std::int64_t group = weight.group;
  const std::int64_t quads = quads_of(group);
  for (std::int64_t g = begin / group; g < (begin + count) / group; ++g, out += group_bytes(group)) {
    std::fill_n(out, quads * 4 * kPanelRows, std::byte{128});
    std::byte* scales = out + quads * 4 * kPanelRows;
    std::fill_n(scales, kPanelRows * 4, std::byte{0});
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::byte* from = weight.planes[0].data + (first_row + r) * weight.planes[0].row_bytes + g * group;
      for (std::int64_t k = 0; k < group; ++k) out[(k / 4 * kPanelRows + r) * 4 + k % 4] = from[k] ^ std::byte{128};
      std::memcpy(scales + r * 4, weight.planes[1].data + (first_row + r) * weight.planes[1].row_bytes + g * 4, 4);
    }
  }
}

// One block's planes from its 16 rows of quads: the lowest bits go to the widest plane.
void pack_planes(const std::uint32_t quads[kPanelRows][8], int bits, std::uint32_t* out) {
  int from = 0;  // the lowest bit that is not in a plane yet
  for (int width = 8; width >= 1; width /= 2) {
    if ((bits & width) == 0) continue;
    const std::uint32_t mask = 0x01010101U * ((1U << width) - 1U);
    for (int j = 0; j < 8; ++j) {
      std::uint32_t* vector = out + j * width / 8 * kPanelRows;
      for (std::int64_t r = 0; r < kPanelRows; ++r) vector[r] |= (quads[r][j] >> from & mask) << (j * width % 8);
    }
    from += width;
    out += width * kPanelRows;
  }
}

void pack_unit(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::int64_t begin, std::int64_t blocks,
               std::byte* out) {
  const BlockLayout layout = layout_of(weight);
  const std::int64_t header = header_bytes(layout, blocks);
  std::fill_n(out, unit_bytes(layout, blocks), std::byte{0});
  // A field of the header: f16 [16] or int8 [16], one after another.
  std::byte* field = out;
  const auto next = [&](std::int64_t bytes) { return field += bytes, field - bytes; };
  std::byte* d = nullptr;
  std::byte* dm = nullptr;
  const auto next_scales = [&] {
    d = next(2 * kPanelRows);
    if (layout.minimum) dm = next(2 * kPanelRows);
  };
  if (layout.sub_scales) next_scales();

  IntegerBlock b;
  for (std::int64_t i = 0; i < blocks; ++i) {
    if (layout.zeros) {
      d = out + (i >> layout.share) * kZeroEntry;
    } else if (!layout.sub_scales) {
      next_scales();
    }
    std::byte* const sub = layout.sub_scales ? next(layout.halves * kPanelRows) : nullptr;
    std::byte* const m = layout.sub_scales && layout.minimum ? next(layout.halves * kPanelRows) : nullptr;
    std::uint32_t quads[kPanelRows][8] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      weight.format->integers(weight, first_row + r, begin / kBlockCols + i, b);
      std::uint8_t values[kBlockCols];
      for (std::size_t k = 0; k < kBlockCols; ++k) values[k] = static_cast<std::uint8_t>(b.q[k] + layout.offset);
      std::memcpy(quads[r], values, sizeof(values));
      const std::uint16_t scale = float_to_half(b.d);
      std::memcpy(d + 2 * r, &scale, 2);
      if (layout.minimum) {
        const std::uint16_t minimum = float_to_half(b.dm);
        std::memcpy(dm + 2 * r, &minimum, 2);
      }
      if (layout.zeros) d[2 * kPanelRows + r] = static_cast<std::byte>(b.zero);
      for (std::int64_t h = 0; layout.sub_scales && h < layout.halves; ++h) {
        sub[h * kPanelRows + r] = static_cast<std::byte>(b.sub[static_cast<std::size_t>(h)]);
        if (layout.minimum) m[h * kPanelRows + r] = static_cast<std::byte>(b.m[static_cast<std::size_t>(h)]);
      }
    }
    pack_planes(quads, layout.bits, reinterpret_cast<std::uint32_t*>(out + header + i * layout.bits * kPanelRows * 4));
  }
}

}  // namespace

PanelForm panel_form(const Weight& weight) {
  if (in_blocks(weight)) return PanelForm::blocks;
  if (weight.int8_input) return weight.format == &kLlmInt8 ? PanelForm::llm_int8 : PanelForm::int8_group;
  if (weight.format == &kF16) return PanelForm::f16;
  return weight.format == &kBF16 ? PanelForm::bf16 : PanelForm::f32;
}

BlockLayout layout_of(const Weight& weight) {
  const BlockFacts& b = weight.format->blocks;
  int share = 0;
  while (b.zeros && share < 3 && (weight.group >= weight.cols || weight.group % (2 * kBlockCols << share) == 0))
    ++share;
  return {b.bits, b.offset, b.halves, b.sub_scales, b.minimum, b.zeros, share};
}

std::int64_t header_bytes(const BlockLayout& layout, std::int64_t blocks) {
  if (layout.zeros) return ((((blocks - 1) >> layout.share) + 1) * kZeroEntry + 63) / 64 * 64;
  const std::int64_t fields = layout.minimum ? 2 : 1;
  const std::int64_t scales = fields * 2 * kPanelRows;
  const std::int64_t bytes =
      layout.sub_scales ? scales + blocks * fields * layout.halves * kPanelRows : blocks * scales;
  return (bytes + 63) / 64 * 64;
}

std::int64_t unit_bytes(const BlockLayout& layout, std::int64_t blocks) {
  return header_bytes(layout, blocks) + blocks * layout.bits * kPanelRows * 4;
}

std::int64_t panel_bytes(const Weight& weight, std::int64_t cols) {
  switch (panel_form(weight)) {
    case PanelForm::f32:
      return cols * kPanelRows * 4;
    case PanelForm::f16:
    case PanelForm::bf16:
      return cols * kPanelRows * 2;
    case PanelForm::int8_group:
      return cols / weight.group * group_bytes(weight.group);
    case PanelForm::llm_int8:
      return cols / weight.cols * llm_int8_panel_bytes(weight);
    case PanelForm::blocks:
      break;
  }
  const BlockLayout layout = layout_of(weight);
  const std::int64_t rest = cols % kBlock / kBlockCols;
  return cols / kBlock * unit_bytes(layout, kUnitBlocks) + (rest > 0 ? unit_bytes(layout, rest) : 0);
}

void pack_panel(const Weight& weight, std::int64_t panel, std::int64_t begin, std::int64_t count, std::byte* out) {
  const std::int64_t first_row = panel * kPanelRows;
  const std::int64_t rows = std::min(kPanelRows, weight.rows - first_row);
  switch (panel_form(weight)) {
    case PanelForm::f32:
      return pack_f32(weight, first_row, rows, begin, count, reinterpret_cast<float*>(out));
    case PanelForm::f16:
    case PanelForm::bf16:
      return pack_half(weight, first_row, rows, begin, count, reinterpret_cast<std::uint16_t*>(out));
    case PanelForm::int8_group:
      return pack_int8(weight, first_row, rows, begin, count, out);
    case PanelForm::llm_int8:
      return pack_llm_int8(weight, first_row, rows, out);
    case PanelForm::blocks:
      return pack_unit(weight, first_row, rows, begin, count / kBlockCols, out);
  }
}

}  // namespace llama2cpp
