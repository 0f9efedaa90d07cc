// A model of matrices that are in memory.
#pragma once

#include <vector>

#include "io/checkpoint.h"

namespace llama2cpp {

// Weights by the names of any one family; a tied model's matrix may have the output's name, the embeddings', or both.
// Throws std::invalid_argument for names of no family or of two, for one that no Llama of this config has, and where a tied
// model's two matrices differ.
Checkpoint checkpoint_of_arrays(const Config& config, std::vector<Weight> weights);

}  // namespace llama2cpp
