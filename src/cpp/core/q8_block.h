// Q8Block: how a cache in q8_0 holds 32 numbers of a key or a value, in the layout of Q8_0's blocks. A number is q * scale,
// which is exact as a float. No functions: files of kernels include this (see kernel_table.h).
#pragma once

#include <cstdint>

namespace llama2cpp {

inline constexpr std::int64_t kQ8Numbers = 32;

struct Q8Block {
  std::uint16_t scale;  // f16; NaN where a number was not finite
  std::int8_t q[kQ8Numbers];
};
static_assert(sizeof(Q8Block) == 34);

}  // namespace llama2cpp
