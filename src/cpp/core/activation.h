// What an MLP does to the numbers between its matrices. Without functions: kernels include it.
#pragma once

#include <cstdint>

namespace llama2cpp {

// silu: x sigmoid(x). gelu_tanh: GELU as tanh approximates it. relu_squared: max(x, 0)^2.
enum class Activation : std::uint8_t { silu, gelu_tanh, relu_squared };

}  // namespace llama2cpp
