// GPTQ's 8 bits.
#include "common.metal"

constant constexpr uint kBits = 8;

#include "gptq.metal"
