// Packing one weight for a file of panels.
#pragma once

#include "backend/backend.h"
#include "core/function_ref.h"

namespace llama2cpp {

// Makes weight.panels as a file holds them, whatever the model that it comes from wants of its input. Takes the backend's
// lease; `poll` is called while it waits, and may throw. Throws std::invalid_argument for a weight that no such file holds, and
// FormatError where the file that it comes from is not as it was opened.
void pack_for_file(Weight& weight, Backend& backend, FunctionRef<void()> poll);

}  // namespace llama2cpp
