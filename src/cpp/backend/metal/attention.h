// store_kv and attention as dispatches. The arguments have been checked (op_checks.h).
#pragma once

#include <span>

#include "backend/backend.h"
#include "backend/metal/tools.h"

namespace llama2cpp::metal {

void store_kv(Tools& tools, const Tensor& k, const Tensor& v, std::span<const AttentionSpan> spans);

// From the first stage to the last in one kernel where nobody wants to see what is between; else stage by stage, and then the bits
// may be others.
void attention(Tools& tools, const Tensor& q, std::span<const AttentionSpan> spans, const Tensor& z,
               AttentionStage first, AttentionStage last);

}  // namespace llama2cpp::metal
