// Rounding keys and values to q8_0.
#pragma once

#include <cstdint>

#include "backend/cpu/kernel_table.h"
#include "core/q8_block.h"

namespace llama2cpp {

// x [n] -> blocks [n / 32]; n is a multiple of 32. Each group is rounded as the kernel `quantize` rounds it (scale =
// largest / 127, halves away from zero), and then its scale to f16.
void narrow_q8(const KernelTable& kernels, const float* x, std::int64_t n, Q8Block* blocks);

}  // namespace llama2cpp
