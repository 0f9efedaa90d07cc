// GPTQ's 2 bits.
#include "common.metal"

constant constexpr uint kBits = 2;

#include "gptq.metal"
