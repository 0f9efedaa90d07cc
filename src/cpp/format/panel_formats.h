// Formats of weights that a file holds in panels (block_layout.h): the numbers of another format, read from there. Plane 0 is
// [rows / 16, rounded up] panels, which are no rows of the weight, so its row_bytes are 0. Where there is an order, as in
// GPTQ, panels hold the columns in it, and `decode` gives them as they were. LLM.int8() keeps its plane of fixed columns.
#pragma once

#include "format/format.h"
#include "format/panel_layout.h"

namespace llama2cpp {

// The panels that packing makes of a weight whose input is rounded, where that can be: the form that files have.
PanelForm stored_form(const Weight& weight);

// `numbers` in panels of a form; null for a form that it has none of. Name and facts are those of `numbers`.
const Format* in_panels(const Format& numbers, PanelForm form);

// Bytes of all panels of a weight whose format is one of these. Throws FormatError where the product is too large to be one.
std::size_t stored_bytes(const Weight& weight);

}  // namespace llama2cpp
