// Whose files can hold a model: what a Config and optional parts ask for, beside what a family's row says.
#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/families.h"
#include "io/gguf_holds.h"

namespace llama2cpp {
namespace {

// What a Config sets beyond a Llama, and what a family must compute for that.
struct Setting {
  std::string_view field;
  bool is_set;
  std::string_view needs;
};

std::vector<Setting> settings_of(const Config& c) {
  return {
      {"rotary_dim", c.rotary_dim != 0, "partial_rotary_factor"},
      {"no_rope_layers", !c.no_rope_layers.empty(), "no_rope_layers"},
      {"embedding_multiplier", c.embedding_multiplier != 1.0F, "multipliers"},
      {"residual_multiplier", c.residual_multiplier != 1.0F, "multipliers"},
      {"attention_multiplier", c.attention_multiplier != 0.0F, "multipliers"},
      {"logits_scaling", c.logits_scaling != 1.0F, "multipliers"},
  };
}

// Whether two numbers are one but for how they were rounded.
bool close(double one, double other) { return std::abs(one - other) <= 1e-6 * std::abs(other); }

// What scores are multiplied by.
double score_multiplier(const Config& config) {
  if (config.attention_multiplier != 0.0F) return double{config.attention_multiplier};
  return 1 / std::sqrt(static_cast<double>(config.head_dim));
}

// What llama.cpp multiplies scores by where a file does not say.
double gguf_score_multiplier(const Family& family, const Config& config) {
  const bool wide = family.gguf_wide_scale > 0 && config.n_layers == family.gguf_wide_scale;
  return 1 / std::sqrt(static_cast<double>(wide ? config.dim / config.n_heads : config.head_dim));
}

bool holds_experts(const Family& family, const Config& config, Naming naming) {
  if (family.experts.has_value() != (config.n_experts > 0)) return false;
  if (!family.experts) return true;
  const bool says = family.experts->says_whether && naming == Naming::hugging_face;
  return config.router_order == family.experts->order &&
         (says || config.router_renormalise == family.experts->renormalise);
}

// Windows, and what depends on whether a layer has one.
bool holds_windows(const Family& family, const Config& config) {
  const bool window = config.sliding_window > 0;
  if (family.needs_window && !window) return false;
  if (!config.full_layers.empty() && family.windows != Windows::some) return false;
  if (family.rope_in_windows && window && config.no_rope_layers != config.full_layers) return false;
  if (config.local_rope_theta > 0.0F) return family.local_rope;
  const bool scaled = config.rope_scaling.kind != RopeScaling::Kind::none || !config.rope_factors.empty();
  return !(family.local_rope && window && scaled);  // where layers with one have no scaling
}

// Whether a family computes what a setting says although it has no switch for it.
bool implies(const Family& family, const Config& config, std::string_view field) {
  if (field == "no_rope_layers") return family.rope_in_windows && config.sliding_window > 0;
  if (field == "embedding_multiplier") return family.scaled_embedding;
  if (field == "attention_multiplier") return family.query_scalar > 0;
  return field == "logits_scaling" && family.logit_scale > 0;
}

bool holds_numbers(const Family& family, const Config& config, Naming naming) {
  for (const Setting& setting : settings_of(config)) {
    if (!setting.is_set || family.computes_switch(setting.needs)) continue;
    if (!implies(family, config, setting.field)) return false;
  }
  const double root = std::sqrt(static_cast<double>(config.dim));
  if (family.scaled_embedding && !close(double{config.embedding_multiplier}, root)) return false;
  if (config.score_cap > 0.0F && !family.computes_switch(kScoreCap)) return false;
  if (config.logits_cap > 0.0F && !family.computes_switch(kLogitsCap)) return false;
  if (naming == Naming::hugging_face) {
    return !family.eps_name.empty() || config.norm_eps == static_cast<float>(family.norm_eps);
  }
  // llama.cpp has caps where a family has them.
  const bool capped =
      (family.score_cap == 0 || config.score_cap > 0.0F) && (family.logits_cap == 0 || config.logits_cap > 0.0F);
  return capped && (family.query_scalar == 0 || close(score_multiplier(config), gguf_score_multiplier(family, config)));
}

bool holds(const Family& family, const Config& config, std::span<const Part> parts, Naming naming) {
  Config same = config;
  family.apply_to(same);
  if (family.computes_switch("use_parallel_residual")) same.parallel = config.parallel;
  if (!same_fields(same, config)) return false;
  if (!holds_experts(family, config, naming) || !holds_windows(family, config)) return false;
  if (!holds_numbers(family, config, naming)) return false;
  return std::all_of(parts.begin(), parts.end(), [&](Part part) { return family.may_have(part); }) &&
         std::all_of(family.parts.begin(), family.parts.end(), [&](Part part) { return contains(parts, part); });
}

// Whether a model has what llama.cpp's models of the family always have: biases of norms, and in some all others.
bool has_needed_biases(const Family& family, const Config& config, std::span<const Part> parts) {
  return std::all_of(std::begin(kParts), std::end(kParts), [&](const PartFacts& row) {
    const bool bias = row.kind == PartKind::bias && is_needed(config, row.part) != false && family.may_have(row.part);
    return !bias || !(is_norm_bias(row.part) || family.gguf_biased) || contains(parts, row.part);
  });
}

// "a sliding window (sliding_window) and biases"
std::string features(const Config& config, std::span<const Part> parts) {
  std::string text;
  const auto add = [&](std::string_view what) { text += cat(text.empty() ? "" : " and ", what); };
  if (config.sliding_window > 0) add("a sliding window (sliding_window)");
  if (!config.full_layers.empty()) add("layers without one (full_layers)");
  if (config.qk_norm != QkNorm::none) add(cat("norms of queries and keys (qk_norm ", to_string(config.qk_norm), ")"));
  if (config.n_experts > 0)
    add(cat("experts (n_experts) by ", to_string(config.router_order),
            config.router_renormalise ? " and router_renormalise" : ""));
  for (const Setting& setting : settings_of(config)) {
    if (setting.is_set) add(setting.field);
  }
  if (config.norm != NormKind::rms) add(cat("norm ", to_string(config.norm)));
  if (config.norm_places != NormPlaces::before) add(cat("norm_places ", to_string(config.norm_places)));
  if (config.parallel) add("parallel");
  if (config.activation != Activation::silu) add(cat("activation ", to_string(config.activation)));
  if (!config.gated) add("no gate (gated)");
  if (config.local_rope_theta > 0.0F) add("local_rope_theta");
  if (config.score_cap > 0.0F) add("score_cap");
  if (config.logits_cap > 0.0F) add("logits_cap");
  if (config.rope_scaling.kind != RopeScaling::Kind::none)
    add(cat("rope_scaling of type ", to_string(config.rope_scaling.kind)));
  if (config.q_dim() != config.dim) add("heads of their own width (head_dim)");
  bool biases = false;
  for (const Part part : parts) {
    const bool bias = facts(part).kind == PartKind::bias;
    if (!bias || !biases) add(bias ? "biases" : facts(part).name);
    biases |= bias;
  }
  return text;
}

}  // namespace

const Family& hugging_face_family_of(const Config& config, std::span<const Part> parts, std::string_view own) {
  const RopeScaling::Kind scaling = config.rope_scaling.kind;
  const bool other_scaling = (scaling != RopeScaling::Kind::none && scaling != RopeScaling::Kind::longrope) ||
                             (scaling == RopeScaling::Kind::none && !config.rope_factors.empty());
  const auto fits = [&](const Family& family) {
    const bool window = family.windows != Windows::none || config.sliding_window == 0;
    return window && !(family.longrope_alone && other_scaling) && holds(family, config, parts, Naming::hugging_face);
  };
  const Family* const itself = find_hugging_face_family(own);
  if (itself != nullptr && !itself->written && fits(*itself)) return *itself;
  for (const Family& family : families()) {
    if (family.written && fits(family)) return family;
  }
  throw std::invalid_argument(cat("transformers has no model that this version writes with ", features(config, parts)));
}

bool gguf_holds(const Family& family, const Config& config, std::span<const Part> parts) {
  // Which layers have a window is not in a file's metadata, but a rule of the family.
  const bool usual =
      family.full_every > 0 && config.full_layers == family.usual_full_layers(config.n_layers, family.full_every);
  const bool window = family.windows != Windows::some || config.sliding_window == 0 || usual;
  const bool no_rope = (family.rope_in_windows && config.sliding_window > 0) ||
                       config.no_rope_layers == family.usual_no_rope_layers(config.n_layers, family.no_rope_every);
  const bool longrope = config.rope_scaling.kind == RopeScaling::Kind::longrope;
  const bool rope = no_rope && (!longrope || family.computes_switch("partial_rotary_factor"));
  const bool biases = family.gguf_biases || std::all_of(parts.begin(), parts.end(), [&](Part part) {
                        return facts(part).kind != PartKind::bias || is_norm_bias(part) || contains(family.parts, part);
                      });
  const bool heads = (!family.gguf_square || config.q_dim() == config.dim) &&
                     (!family.gguf_all_keys || config.n_kv_heads == config.n_heads);
  const bool output = config.tied == family.gguf_tied.value_or(config.tied);
  return !family.gguf.empty() && window && rope && biases && has_needed_biases(family, config, parts) && heads &&
         output && holds(family, config, parts, Naming::gguf);
}

const Family& gguf_family_of(const Config& config, std::span<const Part> parts) {
  const auto fits = [&](const Family& family) { return family.written && gguf_holds(family, config, parts); };
  const auto found = std::find_if(families().begin(), families().end(), fits);
  if (found != families().end()) return *found;
  const bool fewer_keys = config.n_experts > 0 && config.qk_norm == QkNorm::full && config.n_kv_heads != config.n_heads;
  throw std::invalid_argument(cat("llama.cpp has no model that this version writes with ", features(config, parts),
                                  fewer_keys ? " and fewer heads of keys than of queries (n_kv_heads)" : "",
                                  config.tied ? " and no output matrix of its own (tied)" : ""));
}

}  // namespace llama2cpp
