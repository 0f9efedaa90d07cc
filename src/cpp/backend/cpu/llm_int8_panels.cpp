// Writing panels of LLM.int8() weights: a transposition of 16 rows.
#include "backend/cpu/llm_int8_panels.h"

#include <algorithm>

#include "format/llm_int8.h"
#include "format/panel_layout.h"

namespace llama2cpp {

void pack_llm_int8(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::byte* out) {
  const std::int64_t values = quads_of(weight.cols) * 4 * kPanelRows;
  const auto fixed = static_cast<std::int64_t>(fixed_outliers(weight).size());
  std::byte* const scales = out + values;
  std::byte* const halves = scales + kPanelRows * 4;
  std::fill_n(out, values, std::byte{128});
  std::fill(scales, out + llm_int8_panel_bytes(weight), std::byte{0});
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t row = first_row + r;
    const std::byte* const q = weight.planes[0].data + row * weight.planes[0].row_bytes;
    for (std::int64_t k = 0; k < weight.cols; ++k) out[(k / 4 * kPanelRows + r) * 4 + k % 4] = q[k] ^ std::byte{128};
    const float scale = llm_int8_scale(weight, row);
    std::memcpy(scales + r * 4, &scale, sizeof(scale));
    const std::byte* const from = weight.planes[3].data + row * weight.planes[3].row_bytes;
    for (std::int64_t i = 0; i < fixed; ++i) std::memcpy(halves + (i * kPanelRows + r) * 2, from + i * 2, 2);
  }
}

}  // namespace llama2cpp
