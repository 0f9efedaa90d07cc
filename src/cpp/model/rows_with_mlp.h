// A layer's MLP is not computed for sequences whose hooks replace what it gives.
#pragma once

#include <cstdint>
#include <span>

#include "core/thread_pool.h"
#include "model/forward.h"
#include "model/norms.h"
#include "model/pass_rows.h"

namespace llama2cpp {

// From the first sequence of a pass whose MLP somebody wants to the last: their rows, none if nobody wants any.
Range rows_with_mlp(const Hooks& hooks, const PassRows& rows, std::int64_t layer);

// The sequences whose rows those are.
std::span<const SequenceInput> sequences_of(std::span<const SequenceInput> sequences, const PassRows& rows, Range some);

// The same input, of some rows.
Input of_rows(const Input& input, Range some);

// x [T, n]: zeros in all rows but some.
void zero_outside(const Tensor& x, Range some);

}  // namespace llama2cpp
