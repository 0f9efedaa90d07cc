// Formats of weights that a file holds in panels (block_layout.h): the numbers of another format, read from there. Plane 0 is
// [rows / 16, rounded up] panels, which are no rows of the weight, so its row_bytes are 0. Where there is an order, as in
// GPTQ, panels hold the columns in it, and `decode` gives them as they were. LLM.int8() keeps its plane of fixed columns.
#pragma once

#include <cstdint>
#include <string>

#include "format/format.h"
#include "format/panel_layout.h"

namespace llama2cpp {

// The panels that packing makes of a weight whose input is rounded, where that can be: the form that files have.
PanelForm stored_form(const Weight& weight);

// `numbers` in panels of a form; null for a form that it has none of. Name and facts are those of `numbers`.
const Format* in_panels(const Format& numbers, PanelForm form);

// A matrix whose rows lie in one plane, which is not there yet. Throws std::invalid_argument for a format without rows of its
// own, and for rows that are no whole groups of it.
Weight plain_matrix(std::string name, const Format& format, std::int64_t rows, std::int64_t cols);

// What a file of panels says of a weight: its format, group and order, in panels. Its planes stay what they were. Throws
// std::invalid_argument for one that such a file cannot hold.
Weight as_in_panel_file(Weight weight);

// Bytes of all panels of a weight whose format is one of these. Throws FormatError where the product is too large to be one.
std::size_t stored_bytes(const Weight& weight);

}  // namespace llama2cpp
