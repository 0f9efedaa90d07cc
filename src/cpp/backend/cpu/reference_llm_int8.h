// The specification of LLM.int8()'s arithmetic: see reference_llm_int8.cpp.
#pragma once

#include "backend/cpu/kernel_table.h"

namespace llama2cpp {

void reference_matmul_llm_int8(const LlmInt8Call& call);
std::int64_t reference_quantize_row(const LlmInt8Row& row);

}  // namespace llama2cpp
