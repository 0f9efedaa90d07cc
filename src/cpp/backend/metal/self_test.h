// Whether the GPU computes what it should, on a few numbers: a model is not loaded onto one that is silently wrong.
#pragma once

#include "backend/backend.h"

namespace llama2cpp::metal {

// Throws Unavailable with the op and the numbers that were not as expected.
void self_test(Backend& backend);

}  // namespace llama2cpp::metal
