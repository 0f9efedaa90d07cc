// Frequencies and angles are rounded to float as the reference implementations round them; their cosine and sine are
// then taken in double, which leaves nothing to a platform's float functions. In llama2.c's order all of it is what its
// C library gives.
#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/llama2c_rope.h"

namespace llama2cpp {
namespace {

// Llama 3.1's rule (Grattafiori et al. 2024; Meta's llama-models has it), each step rounded to float as in transformers.
float llama3_scaled(float inv_freq, const RopeScaling& scaling) {
  const auto context = static_cast<float>(scaling.original_context);
  const float low = scaling.low_freq_factor;
  const float high = scaling.high_freq_factor;
  const float wave_length = (1.0F / inv_freq) * (2.0F * std::numbers::pi_v<float>);
  if (wave_length > context / low) return inv_freq / scaling.factor;
  if (wave_length < context / high) return inv_freq;
  const float smooth = ((1.0F / wave_length) * context - low) / (high - low);  // 0 at the long end, 1 at the short
  return (1.0F - smooth) * inv_freq / scaling.factor + smooth * inv_freq;
}

// YaRN (Peng et al. 2023), each step rounded as in transformers: the frequencies from `first` to `last` change evenly.
struct YarnRange {
  double first, last;

  explicit YarnRange(const Config& c) {
    const RopeScaling& scaling = c.rope_scaling;
    const auto context = static_cast<double>(scaling.original_context);
    // which frequency turns so often in the context
    const auto frequency = [&](float turns) {
      return static_cast<double>(c.rotary()) * std::log(context / (double{turns} * 2 * std::numbers::pi)) /
             (2 * std::log(double{c.rope_theta}));
    };
    first = frequency(scaling.beta_fast);
    last = frequency(scaling.beta_slow);
    if (scaling.truncate) {
      first = std::floor(first);
      last = std::ceil(last);
    }
    first = std::max(first, 0.0);
    last = std::min(last, static_cast<double>(c.rotary() - 1));
    if (first == last) last += 0.001;
  }
};

float yarn_scaled(float power, std::int64_t j, const Config& c) {
  const YarnRange range(c);
  const float way =
      (static_cast<float>(j) - static_cast<float>(range.first)) / static_cast<float>(range.last - range.first);
  const float kept = 1.0F - std::clamp(way, 0.0F, 1.0F);
  return (1.0F / (c.rope_scaling.factor * power)) * (1.0F - kept) + (1.0F / power) * kept;
}

float scaled(float inv_freq, const RopeScaling& scaling) {
  switch (scaling.kind) {
    case RopeScaling::Kind::linear:
      return inv_freq / scaling.factor;
    case RopeScaling::Kind::llama3:
      return llama3_scaled(inv_freq, scaling);
    default:
      return inv_freq;
  }
}

float length_of(const RopeScaling& scaling) {
  const bool scaled = scaling.kind == RopeScaling::Kind::yarn || scaling.kind == RopeScaling::Kind::longrope;
  return scaled ? scaling.attention_factor : 1.0F;
}

}  // namespace

RopeAngles::RopeAngles(const Config& config, Arithmetic arithmetic, bool is_long)
    : arithmetic_(arithmetic), length_(length_of(config.rope_scaling)) {
  const bool llama2c = arithmetic == Arithmetic::llama2c && config.rope_theta == 10000.0F;
  const std::vector<float>& factors = is_long ? config.rope_long_factors : config.rope_factors;
  for (std::int64_t j = 0; j < config.rotary() / 2; ++j) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(config.rotary());
    const float power = llama2c ? llama2c_power_of_10000(exponent)
                                : static_cast<float>(std::pow(double{config.rope_theta}, double{exponent}));
    const float inv_freq = config.rope_scaling.kind == RopeScaling::Kind::yarn
                               ? yarn_scaled(power, j, config)
                               : scaled(1.0F / power, config.rope_scaling);
    inv_freq_.push_back(factors.empty() ? inv_freq : inv_freq / factors[static_cast<std::size_t>(j)]);
  }
}

RopeAngles RopeAngles::local(const Config& config, Arithmetic arithmetic) {
  Config own = config;
  if (config.local_rope_theta > 0.0F) {
    own.rope_theta = config.local_rope_theta;
    own.rope_scaling = {};
    own.rope_factors.clear();
  }
  return RopeAngles(own, arithmetic);
}

void RopeAngles::at(std::int64_t position, float* cos, float* sin) const {
  for (std::size_t j = 0; j < inv_freq_.size(); ++j) {
    const float angle = static_cast<float>(position) * inv_freq_[j];
    if (arithmetic_ == Arithmetic::llama2c) {
      const SinCos turned = llama2c_sin_cos(angle);
      cos[j] = turned.cos;
      sin[j] = turned.sin;
      continue;
    }
    cos[j] = static_cast<float>(std::cos(double{angle})) * length_;
    sin[j] = static_cast<float>(std::sin(double{angle})) * length_;
  }
}

}  // namespace llama2cpp
