// What Config must satisfy before anything is computed from it. The limits are far above any real model and low
// enough that products of two sizes never overflow.
#include "core/config.h"

#include <cmath>

#include "core/check.h"

namespace llama2cpp {

void Config::validate() const {
  constexpr std::int64_t kMaxSize = std::int64_t{1} << 30;
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
  if (!(rope_theta > 0.0F) || !std::isfinite(rope_theta)) {
    throw FormatError(cat("config: rope_theta is ", rope_theta, ", expected a finite number above 0"));
  }
}

}  // namespace llama2cpp
