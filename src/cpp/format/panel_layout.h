// How many bytes a weight's panels take, and in which form. See block_layout.h for the forms.
#pragma once

#include "format/block_layout.h"
#include "format/format.h"

namespace llama2cpp {

// The form that matmul reads a weight in, which int8_input and bf16_input decide too.
PanelForm panel_form(const Weight& weight);

inline std::int64_t panel_count(const Weight& weight) { return (weight.rows + kPanelRows - 1) / kPanelRows; }

// Quads of one group; the last is filled up with zeros.
inline std::int64_t quads_of(std::int64_t group) { return (group + 3) / 4; }
// Bytes of one group in an int8_group panel: weights and scales.
inline std::int64_t group_bytes(std::int64_t group) { return quads_of(group) * 4 * kPanelRows + kPanelRows * 4; }

// Bytes of a scale and a zero point of 16 rows.
inline constexpr std::int64_t kZeroEntry = 3 * kPanelRows;

BlockLayout layout_of(const Weight& weight);
// Bytes of a unit's header, and of the whole unit.
std::int64_t header_bytes(const BlockLayout& layout, std::int64_t blocks);
std::int64_t unit_bytes(const BlockLayout& layout, std::int64_t blocks);

// Bytes of an llm_int8 panel, which is always of whole rows.
std::int64_t llm_int8_panel_bytes(const Weight& weight);

// Bytes that columns [0, cols) of one panel take. Blocks: `cols` is a multiple of 256, or all there are.
std::int64_t panel_bytes(const Weight& weight, PanelForm form, std::int64_t cols);
inline std::int64_t panel_bytes(const Weight& weight, std::int64_t cols) {
  return panel_bytes(weight, panel_form(weight), cols);
}

}  // namespace llama2cpp
