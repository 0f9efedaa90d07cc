// What Config must satisfy before anything is computed from it.
#include "core/config.h"

#include <algorithm>
#include <cmath>
#include <string>

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

void check(const std::string& /*name*/, const Field& /*field*/, RopeScaling::Kind /*value*/) {}
void check(const std::string& /*name*/, const Field& /*field*/, RopeStyle /*value*/) {}
void check(const std::string& /*name*/, const Field& /*field*/, bool /*value*/) {}

void check(const std::string& name, const Field& /*field*/, const RopeScaling& scaling) {
  RopeScaling::fields([&](const Field& field, auto member) {
    if (scaling.has(field)) check(cat(name, "'s ", field.name), field, scaling.*member);
  });
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
  const RopeScaling& scaling = rope_scaling;
  if (scaling.kind == RopeScaling::Kind::llama3 && scaling.low_freq_factor >= scaling.high_freq_factor) {
    throw FormatError(cat("config: rope_scaling's low_freq_factor is ", scaling.low_freq_factor,
                          ", expected less than high_freq_factor, which is ", scaling.high_freq_factor));
  }
  if (scaling.kind == RopeScaling::Kind::yarn && rope_theta <= 1.0F) {
    throw FormatError(cat("config: rope_theta is ", rope_theta, ", expected more than 1 with scaling of type yarn"));
  }
  if (!rope_factors.empty() && static_cast<std::int64_t>(rope_factors.size()) != head_dim / 2) {
    throw FormatError(cat("config: there are ", rope_factors.size(), " rope_factors, expected head_dim / 2, which is ",
                          head_dim / 2));
  }
}

}  // namespace llama2cpp
