// How packed weights lie in memory: in panels of 16 rows, one layout for all instruction sets.
//
//   f32    [k][16 rows]                                    any format, decoded
//   int8   [group] of { [quad][16 rows][4 k], [16] f32 }   int8 weights + 128 with their scales (see Int8Block)
#pragma once

#include "backend/cpu/kernel_table.h"
#include "format/format.h"

namespace llama2cpp {

inline std::int64_t panel_count(const Weight& weight) { return (weight.rows + kPanelRows - 1) / kPanelRows; }

// Quads of one group; the last is filled up with zeros.
inline std::int64_t quads_of(std::int64_t group) { return (group + 3) / 4; }
// Bytes of one group in an int8 panel: weights and scales.
inline std::int64_t group_bytes(std::int64_t group) { return quads_of(group) * 4 * kPanelRows + kPanelRows * 4; }

// Bytes that columns [0, cols) of one panel take.
inline std::int64_t panel_bytes(const Weight& weight, std::int64_t cols) {
  return weight.int8_input ? cols / weight.group * group_bytes(weight.group) : cols * kPanelRows * 4;
}

// Writes columns [begin, begin + count) of one panel in the weight's layout; rows past the end are zeros. `begin` and
// `count` are multiples of what the format decodes at once; for f32 panels `count` is at most kBlock.
void pack_panel(const Weight& weight, std::int64_t panel, std::int64_t begin, std::int64_t count, std::byte* out);

}  // namespace llama2cpp
