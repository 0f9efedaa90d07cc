// The Metal backend's door. Platforms without Metal link no_metal.cpp, so callers need no #ifdef.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace llama2cpp {

// Throws std::invalid_argument with the reason where there is no GPU that it can use, and where the GPU fails the self-test.
std::shared_ptr<Backend> make_metal_backend();

}  // namespace llama2cpp
