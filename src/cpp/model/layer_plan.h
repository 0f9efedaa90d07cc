// What one layer computes that another layer, or another family of models, may compute otherwise. forward.cpp reads it and
// knows no family: a family is a Config (io/families.h), and what follows from that for each layer is said here.
#pragma once

#include <vector>

#include "core/config.h"

namespace llama2cpp {

struct LayerPlan {
  std::int64_t window = 0;                      // a position sees itself and the window - 1 before it; 0: all before it
  bool rope = true;                             // queries and keys are turned
  RopeStyle rope_style{};                       // which numbers of a head rotary embedding turns together
  bool local_rope = false;                      // by local_rope_theta
  float score_divisor = 1.0F;                   // scores are q . k / score_divisor
  float score_cap = 0.0F;                       // then cap * tanh(score / cap); 0: there is none
  bool norm_before = true, norm_after = false;  // of attention and of the MLP
  bool parallel = false;                        // the MLP reads what attention reads
  bool qk_norm_before_rope = false, qk_norm_after_rope = false;
};

// One for each layer.
std::vector<LayerPlan> plan_layers(const Config& config);

}  // namespace llama2cpp
