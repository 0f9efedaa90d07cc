// e^x for the sampler's softmax, and the sum of them. The same bits on every system, and llama2.c's wherever it is linked
// with the GNU C library.
#pragma once

#include <span>

namespace llama2cpp {

// e[i] = exp(logits[i] / temperature - largest / temperature). Returns their sum: f32, in the order of i, as llama2.c has
// it. `largest` is that of the logits [n], which may be -inf, but not all; e [n] may be the same memory.
float exponentials(std::span<const float> logits, float temperature, float largest, std::span<float> e);

}  // namespace llama2cpp
