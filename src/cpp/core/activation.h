// What an MLP does to the numbers between its matrices. Without functions: kernels include it.
#pragma once

#include <cstdint>

namespace llama2cpp {

// silu: x sigmoid(x). gelu_tanh: GELU as tanh approximates it. relu_squared: max(x, 0)^2.
// clamped_swiglu, of a gate x and what it is multiplied with, y: (y + 1) x sigmoid(1.702 x), where x is at most 7, and y from
// -7 to 7.
enum class Activation : std::uint8_t { silu, gelu_tanh, relu_squared, clamped_swiglu };

}  // namespace llama2cpp
