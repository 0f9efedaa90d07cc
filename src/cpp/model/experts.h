// An MLP of routed experts: the router's scores choose k of them for each token, whose outputs are added by its weights.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "core/config.h"
#include "model/activations.h"
#include "model/weights.h"
#include "observe/hooks.h"

namespace llama2cpp {

// a.mlp_out [T, dim] = what layer `layer`'s experts make of norm(x) [T, dim]. Hooks see the router's scores, its choice, and
// what each expert computes.
void run_experts(const Config& config, Backend& backend, const LayerWeights& weights, const Tensor& x, const Norm& norm,
                 Activations& a, std::int64_t layer, std::span<const HookSpan> spans, const Hooks& hooks);

}  // namespace llama2cpp
