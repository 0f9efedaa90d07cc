// What each head adds to the residual stream, for those who look at it.
#pragma once

#include <span>

#include "model/activations.h"
#include "model/weights.h"
#include "observe/hooks.h"

namespace llama2cpp {

// Makes the results [T, n_heads, dim] of one layer and shows them. The result of a head is the product of its part of z
// with its columns of wo, and where a format's groups reach across heads, that of z with zeros for the other heads. Either
// way in the arithmetic of wo's own product, int8 rounding included: the sum is a.attn_out (without bias) within rounding.
// Where a hook has changed a token's results, that token's a.attn_out becomes their sum, head after head; elsewhere
// it is left alone.
void show_head_results(const Config& config, Backend& backend, const LayerWeights& weights, Activations& a,
                       std::int64_t layer, std::span<const HookSpan> spans, const Hooks& hooks);

}  // namespace llama2cpp
