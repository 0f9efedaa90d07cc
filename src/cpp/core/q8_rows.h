// The numbers of blocks of q8_0, as floats.
#pragma once

#include <cstdint>

#include "core/q8_block.h"

namespace llama2cpp {

// blocks [n / 32] -> out [n]; n is a multiple of 32.
void widen_q8(const Q8Block* blocks, std::int64_t n, float* out);

}  // namespace llama2cpp
