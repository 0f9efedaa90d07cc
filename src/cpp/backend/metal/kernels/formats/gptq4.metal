// GPTQ's 4 bits.
#include "common.metal"

constant constexpr uint kBits = 4;

#include "gptq.metal"
