// The specification of block formats' arithmetic: see reference_blocks.cpp.
#pragma once

#include "backend/cpu/kernel_table.h"

namespace llama2cpp {

void reference_matmul_blocks(const BlockCall& call);
void reference_matmul_open(const BlockCall& call);
void reference_matmul_wide(const BlockCall& call);
void reference_unpack_blocks(const BlockLayout& layout, const std::uint8_t* unit, std::int64_t blocks,
                             std::uint8_t* open);
void reference_widen_blocks(const BlockLayout& layout, const std::uint8_t* open, std::int64_t blocks, float* out);
void reference_quantize_blocks(const BlockRounding& row);

}  // namespace llama2cpp
