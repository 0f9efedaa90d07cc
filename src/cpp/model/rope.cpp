// Frequencies and angles are rounded to float as the reference implementations round them; their cosine and sine are
// then taken in double, which leaves nothing to a platform's float functions.
#include "model/rope.h"

#include <cmath>

namespace llama2cpp {

RopeAngles::RopeAngles(const Config& config) {
  for (std::int64_t j = 0; j < config.head_dim / 2; ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(config.head_dim);
    const auto power = static_cast<float>(std::pow(double{config.rope_theta}, double{exponent}));
    inv_freq_.push_back(1.0F / power);
  }
}

void RopeAngles::at(std::int64_t position, float* cos, float* sin) const {
  for (std::size_t j = 0; j < inv_freq_.size(); ++j) {
    const float angle = static_cast<float>(position) * inv_freq_[j];
    cos[j] = static_cast<float>(std::cos(double{angle}));
    sin[j] = static_cast<float>(std::sin(double{angle}));
  }
}

}  // namespace llama2cpp
