// How packed weights lie in memory: in panels of 16 rows, one layout for all instruction sets.
//
//   f32         [k][16 rows]                                    any format, decoded
//   f16, bf16   [k][16 rows]                                    as they are
//   int8_group  [group] of { [quad][16 rows][4 k], [16] f32 }   int8 weights + 128 with their scales (see Int8Block)
//   llm_int8    { [quad][16 rows][4 k], [16] f32, ... }         int8 weights + 128, a scale for each row (see LlmInt8Call)
//   blocks      units of 256 columns (see block_panels.h)       formats that have integers, in the weight's order
#pragma once

#include <algorithm>

#include "backend/cpu/kernel_table.h"
#include "format/format.h"

namespace llama2cpp {

enum class PanelForm : std::uint8_t { f32, f16, bf16, int8_group, blocks, llm_int8 };

PanelForm panel_form(const Weight& weight);

inline std::int64_t panel_count(const Weight& weight) { return (weight.rows + kPanelRows - 1) / kPanelRows; }

// Quads of one group; the last is filled up with zeros.
inline std::int64_t quads_of(std::int64_t group) { return (group + 3) / 4; }
// Bytes of one group in an int8_group panel: weights and scales.
inline std::int64_t group_bytes(std::int64_t group) { return quads_of(group) * 4 * kPanelRows + kPanelRows * 4; }

BlockLayout layout_of(const Weight& weight);
// Bytes of a unit's header, and of the whole unit.
std::int64_t header_bytes(const BlockLayout& layout, std::int64_t blocks);
std::int64_t unit_bytes(const BlockLayout& layout, std::int64_t blocks);

// Bytes that columns [0, cols) of one panel take. Blocks: `cols` is a multiple of 256, or all there are.
std::int64_t panel_bytes(const Weight& weight, std::int64_t cols);

// Writes columns [begin, begin + count) of one panel in the weight's form; rows past the end are zeros. `begin`
// is a multiple of 256 (or of the group), and `count` is 256 (some groups) or all the rest.
void pack_panel(const Weight& weight, std::int64_t panel, std::int64_t begin, std::int64_t count, std::byte* out);

}  // namespace llama2cpp
