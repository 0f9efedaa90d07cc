// Whether GGUF files of a family can hold a model: for what is not the model's own file, but says that it is of that family.
#pragma once

#include <span>

#include "io/families.h"

namespace llama2cpp {

// Of the model's config and its optional parts; written by this version or not.
bool gguf_holds(const Family& family, const Config& config, std::span<const Part> parts);

}  // namespace llama2cpp
