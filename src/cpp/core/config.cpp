// What Config must satisfy before anything is computed from it.
#include "core/config.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>

#include "core/check.h"

namespace llama2cpp {
namespace {

void check(const std::string& name, const Field& field, std::int64_t value) {
  if (value >= field.least && value <= field.most) return;
  throw FormatError(
      cat("config: ", name, " is ", value, ", expected 1 to ", field.most, field.least == 0 ? ", or 0 for none" : ""));
}

void check(const std::string& name, const Field& field, float value) {
  if (std::isfinite(value) && (value > 0.0F || (field.may_be_zero && value == 0.0F))) return;
  throw FormatError(cat("config: ", name, " is ", value, ", expected a finite number ",
                        field.may_be_zero ? "of 0 or more" : "above 0"));
}

void check(const std::string& name, const Field& field, const std::vector<float>& values) {
  for (const float value : values) check("one of " + name, field, value);
}

template <class Value>
  requires std::is_enum_v<Value>
void check(const std::string& /*name*/, const Field& /*field*/, Value /*value*/) {}
void check(const std::string& /*name*/, const Field& /*field*/, const Layers& /*value*/) {}  // by check_layers
void check(const std::string& /*name*/, const Field& /*field*/, bool /*value*/) {}

void check(const std::string& name, const Field& /*field*/, const RopeScaling& scaling) {
  RopeScaling::fields([&](const Field& field, auto member) {
    if (scaling.has(field)) check(cat(name, "'s ", field.name), field, scaling.*member);
  });
}

void check_layers(std::string_view name, const Layers& layers, std::int64_t n_layers) {
  std::int64_t least = 0;
  for (const std::int64_t layer : layers) {
    if (layer < least || layer >= n_layers) {
      throw FormatError(
          cat("config: one of ", name, " is ", layer, ", expected numbers of ", n_layers, " layers, ascending from 0"));
    }
    least = layer + 1;
  }
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
  const bool ends = ends_with_context(rope_scaling) && rope_long_factors.empty();
  LLAMA2CPP_CHECK(!ends || context <= rope_scaling.original_context, "context is ", context,
                  ", but rotary scaling of type ", to_string(rope_scaling.kind),
                  " is implemented up to its original context only, which is ", rope_scaling.original_context);
}

std::int64_t Config::usual_head_dim(const Config& config) {
  LLAMA2CPP_CHECK(config.n_heads > 0 && config.dim % config.n_heads == 0, "dim is ", config.dim, ", which n_heads ",
                  config.n_heads, " does not divide; pass head_dim");
  return config.dim / config.n_heads;
}

void Config::validate() const {
  fields([&](const Field& field, auto member) { check(std::string(field.name), field, this->*member); });

  // What two fields have to do with each other.
  if (n_heads % n_kv_heads != 0) {
    throw FormatError(cat("config: n_heads is ", n_heads, ", which n_kv_heads ", n_kv_heads, " does not divide"));
  }
  if (head_dim % 2 != 0) {
    throw FormatError(cat("config: head_dim is ", head_dim, ", expected an even number (rotary turns pairs)"));
  }
  if (n_experts_used > n_experts || (n_experts > 0 && n_experts_used == 0)) {
    throw FormatError(cat("config: n_experts_used is ", n_experts_used, ", expected ",
                          n_experts > 0 ? "1 to " : "0 for ", "n_experts, which is ", n_experts));
  }
  check_layers("full_layers", full_layers, n_layers);
  check_layers("no_rope_layers", no_rope_layers, n_layers);
  const RopeScaling& scaling = rope_scaling;
  if (scaling.kind == RopeScaling::Kind::llama3 && scaling.low_freq_factor >= scaling.high_freq_factor) {
    throw FormatError(cat("config: rope_scaling's low_freq_factor is ", scaling.low_freq_factor,
                          ", expected less than high_freq_factor, which is ", scaling.high_freq_factor));
  }
  if (scaling.kind == RopeScaling::Kind::yarn && rope_theta <= 1.0F) {
    throw FormatError(cat("config: rope_theta is ", rope_theta, ", expected more than 1 with scaling of type yarn"));
  }
  if (needs_gate(activation) && !gated) {
    throw FormatError(cat("config: activation is ", to_string(activation), " and gated is false, expected a gate"));
  }
  if (n_experts > 0 && ((activation != Activation::silu && !needs_gate(activation)) || !gated)) {
    throw FormatError(cat("config: activation is ", to_string(activation), gated ? "" : " and gated is false",
                          ", expected silu or clamped_swiglu and a gate, of a model with experts"));
  }
  if (local_rope_theta > 0.0F && sliding_window == 0) {
    throw FormatError(cat("config: local_rope_theta is ", local_rope_theta, ", and no layer has a sliding_window"));
  }
  if (parallel && norm_places != NormPlaces::before) {
    throw FormatError(cat("config: norm_places is ", to_string(norm_places), ", expected before, of a parallel model"));
  }
  if (rotary() % 2 != 0 || rotary() > head_dim) {
    throw FormatError(
        cat("config: rotary_dim is ", rotary_dim, ", expected an even number up to head_dim, which is ", head_dim));
  }
  if (!rope_long_factors.empty() && scaling.kind != RopeScaling::Kind::longrope) {
    throw FormatError("config: there are rope_long_factors, which rope_scaling of type longrope has only");
  }
  const char* const size = rotary_dim == 0 ? "head_dim / 2" : "rotary_dim / 2";
  const auto check_count = [&](const char* name, const std::vector<float>& factors) {
    if (factors.empty() || static_cast<std::int64_t>(factors.size()) == rotary() / 2) return;
    throw FormatError(
        cat("config: there are ", factors.size(), " ", name, ", expected ", size, ", which is ", rotary() / 2));
  };
  check_count("rope_factors", rope_factors);
  check_count("rope_long_factors", rope_long_factors);
}

}  // namespace llama2cpp
