// The only function that turns a Config into what layers compute.
#include "model/layer_plan.h"

#include <algorithm>
#include <cmath>

namespace llama2cpp {
namespace {

bool contains(const Layers& layers, std::int64_t layer) {
  return std::binary_search(layers.begin(), layers.end(), layer);
}

float score_divisor(const Config& config) {
  const float multiplier = config.attention_multiplier;
  return multiplier == 0.0F ? std::sqrt(static_cast<float>(config.head_dim)) : 1.0F / multiplier;
}

}  // namespace

std::vector<LayerPlan> plan_layers(const Config& config) {
  std::vector<LayerPlan> plans;
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const std::int64_t window = contains(config.full_layers, i) ? 0 : config.sliding_window;
    const QkNorm qk_norm = config.qk_norm;
    plans.push_back({
        .window = window,
        .rope = !contains(config.no_rope_layers, i),
        .rope_style = config.rope_style,
        .local_rope = window > 0 && config.local_rope_theta > 0.0F,
        .score_divisor = score_divisor(config),
        .score_cap = config.score_cap,
        .norm_before = config.norms_before(),
        .norm_after = config.norms_after(),
        .parallel = config.parallel,
        .qk_norm_before_rope = qk_norm == QkNorm::head || qk_norm == QkNorm::full,
        .qk_norm_after_rope = qk_norm == QkNorm::head_after_rope,
    });
  }
  return plans;
}

}  // namespace llama2cpp
