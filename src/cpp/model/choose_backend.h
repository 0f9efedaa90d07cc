// What a model runs on.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "io/checkpoint.h"
#include "model/model.h"

namespace llama2cpp {

// llama2.c's int8 files are run as llama2.c runs them, unless floats are asked for.
Arithmetic arithmetic_for(const Checkpoint& checkpoint, const std::string& activations);

// The backend that the options name. "auto" is Metal where there is a GPU that it can use, that has kernels for all of the
// model's matrices and room for them, and where the options ask for nothing of the CPU's; else the CPU. Throws what make_backend
// does, and FormatError for a matrix that a backend named in the options has no kernel for.
std::shared_ptr<Backend> choose_backend(const Checkpoint& checkpoint, const ModelOptions& options);

}  // namespace llama2cpp
