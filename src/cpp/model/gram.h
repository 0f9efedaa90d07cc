// The products of all columns of an array with each other, by the backend's own matrix product: the sums have its one order.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "core/function_ref.h"

namespace llama2cpp {

// x [rows, cols] -> products [cols, cols], x^T x. Takes the backend's lease; `poll` is called while it waits, and may throw.
void gram(std::span<const float> x, std::int64_t cols, std::span<float> products, Backend& backend,
          FunctionRef<void()> poll);

}  // namespace llama2cpp
