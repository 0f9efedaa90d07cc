// The only function that turns a Config into what layers compute.
#include "model/layer_plan.h"

#include <cmath>

namespace llama2cpp {

std::vector<LayerPlan> plan_layers(const Config& config) {
  const LayerPlan same{
      .window = config.sliding_window,
      .rope_style = config.rope_style,
      .score_divisor = std::sqrt(static_cast<float>(config.head_dim)),
  };
  return {static_cast<std::size_t>(config.n_layers), same};
}

}  // namespace llama2cpp
