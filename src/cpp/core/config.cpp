// What Config must satisfy before anything is computed from it. The limits are far above any real model and low
// enough that products of two sizes never overflow.
#include "core/config.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace llama2cpp {
namespace {

constexpr std::int64_t kMaxSize = std::int64_t{1} << 30;

void check_positive(const char* name, float value) {
  if (!(value > 0.0F) || !std::isfinite(value)) {
    throw FormatError(cat("config: ", name, " is ", value, ", expected a finite number above 0"));
  }
}

void check_rope(const Config& c) {
  check_positive("rope_theta", c.rope_theta);
  const RopeScaling& scaling = c.rope_scaling;
  if (scaling.kind != RopeScaling::Kind::none) check_positive("rope_scaling's factor", scaling.factor);
  if (scaling.kind == RopeScaling::Kind::llama3) {
    check_positive("rope_scaling's low_freq_factor", scaling.low_freq_factor);
    check_positive("rope_scaling's high_freq_factor", scaling.high_freq_factor);
    if (scaling.low_freq_factor >= scaling.high_freq_factor) {
      throw FormatError(cat("config: rope_scaling's low_freq_factor is ", scaling.low_freq_factor,
                            ", expected less than high_freq_factor, which is ", scaling.high_freq_factor));
    }
  }
  if (scaling.kind == RopeScaling::Kind::yarn) {
    check_positive("rope_scaling's attention_factor", scaling.attention_factor);
    check_positive("rope_scaling's beta_fast", scaling.beta_fast);
    check_positive("rope_scaling's beta_slow", scaling.beta_slow);
    if (c.rope_theta <= 1.0F) {
      throw FormatError(
          cat("config: rope_theta is ", c.rope_theta, ", expected more than 1 with scaling of type yarn"));
    }
  }
  if (scaling.kind == RopeScaling::Kind::longrope) {
    check_positive("rope_scaling's attention_factor", scaling.attention_factor);
  }
  const bool has_context = scaling.kind != RopeScaling::Kind::none && scaling.kind != RopeScaling::Kind::linear;
  if (has_context && (scaling.original_context < 1 || scaling.original_context > kMaxSize)) {
    throw FormatError(
        cat("config: rope_scaling's original_context is ", scaling.original_context, ", expected 1 to ", kMaxSize));
  }
  if (!c.rope_factors.empty() && static_cast<std::int64_t>(c.rope_factors.size()) != c.head_dim / 2) {
    throw FormatError(cat("config: there are ", c.rope_factors.size(),
                          " rope_factors, expected head_dim / 2, which is ", c.head_dim / 2));
  }
  for (const float factor : c.rope_factors) check_positive("one of rope_factors", factor);
}

// Whether frequencies beyond the original context would be others.
bool ends_with_context(const RopeScaling& scaling) {
  return scaling.kind == RopeScaling::Kind::dynamic || scaling.kind == RopeScaling::Kind::longrope;
}

}  // namespace

std::int64_t Config::default_context() const {
  return ends_with_context(rope_scaling) ? std::min(seq_len, rope_scaling.original_context) : seq_len;
}

void Config::check_context(std::int64_t context) const {
  LLAMA2CPP_CHECK(context >= 1, "context is ", context, ", expected 1 or more");
  LLAMA2CPP_CHECK(!ends_with_context(rope_scaling) || context <= rope_scaling.original_context, "context is ", context,
                  ", but rotary scaling of type ", to_string(rope_scaling.kind),
                  " is implemented up to its original context only, which is ", rope_scaling.original_context);
}

void Config::validate() const {
  const struct {
    const char* name;
    std::int64_t value;
    std::int64_t max;
  } sizes[] = {
      {"dim", dim, kMaxSize},
      {"hidden_dim", hidden_dim, kMaxSize},
      {"n_layers", n_layers, 100'000},
      {"n_heads", n_heads, 1 << 20},
      {"n_kv_heads", n_kv_heads, 1 << 20},
      {"head_dim", head_dim, 1 << 20},
      {"vocab_size", vocab_size, kMaxSize},
      {"seq_len", seq_len, kMaxSize},
  };
  for (const auto& size : sizes) {
    if (size.value < 1 || size.value > size.max) {
      throw FormatError(cat("config: ", size.name, " is ", size.value, ", expected 1 to ", size.max));
    }
  }
  if (n_heads % n_kv_heads != 0) {
    throw FormatError(cat("config: n_heads is ", n_heads, ", which n_kv_heads ", n_kv_heads, " does not divide"));
  }
  if (head_dim % 2 != 0) {
    throw FormatError(cat("config: head_dim is ", head_dim, ", expected an even number (rotary turns pairs)"));
  }
  if (!(norm_eps >= 0.0F) || !std::isfinite(norm_eps)) {
    throw FormatError(cat("config: norm_eps is ", norm_eps, ", expected a finite number of 0 or more"));
  }
  if (sliding_window < 0 || sliding_window > kMaxSize) {
    throw FormatError(
        cat("config: sliding_window is ", sliding_window, ", expected 1 to ", kMaxSize, ", or 0 for none"));
  }
  check_rope(*this);
}

}  // namespace llama2cpp
