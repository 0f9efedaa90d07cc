// Panels of LLM.int8() weights: whole rows, laid out as LlmInt8Call says.
#pragma once

#include "format/format.h"

namespace llama2cpp {

// Rows [first_row, first_row + rows), at most 16 of them, to one panel; the others are zeros.
void pack_llm_int8(const Weight& weight, std::int64_t first_row, std::int64_t rows, std::byte* out);

}  // namespace llama2cpp
