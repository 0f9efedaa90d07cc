// GPTQ's 3 bits.
#include "common.metal"

constant constexpr uint kBits = 3;

#include "gptq.metal"
