// Packing: writing a weight's panels, which are laid out as format/block_layout.h says.
#pragma once

#include "backend/cpu/kernel_table.h"
#include "format/format.h"
#include "format/panel_layout.h"

namespace llama2cpp {

// Writes columns [begin, begin + count) of one panel in the weight's form; rows past the end are zeros. `begin`
// is a multiple of 256 (or of the group), and `count` is 256 (some groups) or all the rest.
void pack_panel(const Weight& weight, std::int64_t panel, std::int64_t begin, std::int64_t count, std::byte* out);

}  // namespace llama2cpp
