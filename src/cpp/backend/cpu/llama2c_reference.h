// The kernels of Arithmetic::llama2c in plain loops.
#pragma once

#include "backend/cpu/kernel_table.h"

namespace llama2cpp {

// The table with what llama2.c orders otherwise in its order. The rest is alike in both.
KernelTable reference_in_llama2c_order(KernelTable contract);

// e^x as the GNU C library's expf gives it: worked out in double, rounded to float once at the end.
float llama2c_exponential(float x);

}  // namespace llama2cpp
