// Writing panels: a transposition of 16 rows.
#include "backend/cpu/panels.h"

#include <algorithm>
#include <cstring>

namespace llama2cpp {
namespace {

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

}  // namespace

void pack_panel(const Weight& weight, std::int64_t panel, std::int64_t begin, std::int64_t count, std::byte* out) {
  const std::int64_t first_row = panel * kPanelRows;
  const std::int64_t rows = std::min(kPanelRows, weight.rows - first_row);
  if (weight.int8_input) {
    pack_int8(weight, first_row, rows, begin, count, out);
  } else {
    pack_f32(weight, first_row, rows, begin, count, reinterpret_cast<float*>(out));
  }
}

}  // namespace llama2cpp
