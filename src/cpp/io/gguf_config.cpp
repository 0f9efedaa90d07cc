// Whatever a file says about its architecture beyond what is read here must be known to change nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/families.h"
#include "io/field_names.h"
#include "io/gguf_model.h"
#include "io/names.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kRopeFactors = "rope_freqs.weight";
constexpr std::string_view kShortFactors = "rope_factors_short.weight";
constexpr std::string_view kLongFactors = "rope_factors_long.weight";
// Which layers have the window: a bool for each, or of how many one has none. Of families whose layers differ.
constexpr std::string_view kWindowPattern = "attention.sliding_window_pattern";
constexpr std::string_view kFactor = "rope.scaling.factor";
constexpr std::string_view kOldFactor = "rope.scale_linear";  // its name until the autumn of 2023
constexpr std::string_view kAttentionFactor = "rope.scaling.attn_factor";

// What config_of reads.
constexpr std::string_view kRead[] = {
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    kFactor,
    kOldFactor,
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
};

// What says how a model was made, or is for other kinds of models than those that pass the rest.
constexpr std::string_view kHarmless[] = {
    "tensor_data_layout",
    "attention.layer_norm_epsilon",  // of norms that a Llama does not have
    "rope.scaling.finetuned",
    "expert_used_count",  // without an expert_count above 0
    "expert_feed_forward_length",
};

template <class List>
bool is_in(const List& list, std::string_view key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

// A file's metadata behind the prefix of its architecture.
class Settings {
 public:
  Settings(const Gguf& gguf, const Family& family) : gguf_(gguf), prefix_(cat(family.gguf, ".")) {}

  std::string full(std::string_view key) const { return cat(prefix_, key); }
  std::optional<std::int64_t> integer(std::string_view key) const { return gguf_.integer(full(key)); }
  std::optional<std::string_view> string(std::string_view key) const { return gguf_.string(full(key)); }
  std::optional<float> find_float(std::string_view key) const {
    const auto value = gguf_.number(full(key));
    if (!value) return {};
    const auto number = static_cast<float>(*value);
    // It would be taken for a setting that is not there.
    if (number == 0.0F && *value != 0) fail(key, cat(*value, ", which is too small for a float"));
    return number;
  }

  std::int64_t need(std::string_view key) const {
    const auto value = integer(key);
    if (!value) throw_missing(key);
    return *value;
  }
  float need_float(std::string_view key) const {
    const auto value = find_float(key);
    if (!value) throw_missing(key);
    return *value;
  }

  // A number, or one for each layer where all are equal.
  std::optional<std::int64_t> find_uniform(std::string_view key) const {
    const auto found = gguf_.metadata().find(full(key));
    if (found == gguf_.metadata().end() || !found->second.is_array) return integer(key);
    const std::vector<std::int64_t> values = gguf_.integers(full(key)).value();
    const auto other = [&](std::int64_t value) { return value != values.front(); };
    if (values.empty() || std::any_of(values.begin(), values.end(), other)) {
      fail(key, "an array of numbers that differ, and layers that differ are not implemented");
    }
    return values.front();
  }

  // Whether the file has longrope's divisors.
  bool has_longrope() const { return gguf_.tensors().contains(kShortFactors); }

  void expect_equal(std::string_view key, std::int64_t expected, const char* whose) const {
    const auto value = integer(key);
    if (value && *value != expected) {
      fail(key, cat(*value, ", and only ", expected, ", ", whose, ", is implemented"));
    }
  }

  void refuse_unknown(const Family& family) const {
    for (const auto& [name, value] : gguf_.metadata()) {
      if (!name.starts_with(prefix_)) continue;
      const std::string_view key = std::string_view(name).substr(prefix_.size());
      if (is_in(kRead, key) || is_in(kHarmless, key)) continue;
      if (key == kWindowPattern && family.full_every > 0) continue;
      const auto all = switches();
      const auto found = std::find_if(all.begin(), all.end(),
                                      [&](const Switch& setting) { return !key.empty() && setting.gguf == key; });
      if (found == all.end()) {
        throw FormatError(cat("metadata ", excerpt(name), " (byte ", value.offset,
                              ") is not known, and may stand for something that this version does not compute"));
      }
      if (family.computes_switch(*found) || (key == "logit_scale" && family.logit_scale > 0)) continue;
      const double stated = any_number(std::string(name));
      if (stated != found->neutral) {
        fail(key, cat(stated, ", and only ", found->neutral,
                      " is implemented: the model computes something that this version does not"));
      }
    }
  }

  [[noreturn]] void fail(std::string_view key, const std::string& what) const { gguf_.fail(full(key), what); }

 private:
  [[noreturn]] void throw_missing(std::string_view key) const {
    throw FormatError(cat("metadata '", full(key), "' is missing"));
  }

  // A bool as 0 or 1.
  double any_number(const std::string& name) const {
    const GgufValue& value = gguf_.metadata().at(name);
    if (value.type == GgufType::boolean) return gguf_.boolean(name).value_or(false) ? 1 : 0;
    if (value.type == GgufType::f32 || value.type == GgufType::f64) return gguf_.number(name).value_or(0);
    return static_cast<double>(gguf_.integer(name).value_or(0));
  }

  const Gguf& gguf_;
  std::string prefix_;
};

RopeScaling read_rope_scaling(const Settings& settings, std::int64_t seq_len) {
  // llama.cpp: a factor without a type is of linear scaling, and 0 is no factor. Whatever the type, cos and sin are multiplied
  // by attn_factor.
  const float attention = settings.find_float(kAttentionFactor).value_or(1.0F);
  float factor = settings.find_float(kFactor).value_or(0.0F);
  if (factor == 0.0F) factor = settings.find_float(kOldFactor).value_or(0.0F);
  const std::string_view type = settings.string("rope.scaling.type").value_or("linear");
  // Its divisors come with that type, or with none at all.
  if (settings.has_longrope() && (type == "longrope" || (type == "linear" && factor == 0.0F))) return {};
  if (type != "linear" && type != "none" && type != "yarn") {
    settings.fail("rope.scaling.type",
                  cat(excerpt(type), ", expected \"none\", \"linear\" or \"yarn\": others are not implemented"));
  }
  if (attention != 1.0F && type != "yarn") {
    settings.fail(kAttentionFactor, cat(attention, ", and without rope.scaling.type \"yarn\" only 1 is implemented"));
  }
  if (factor == 0.0F) factor = 1.0F;
  RopeScaling scaling;
  if (type == "none" || (factor == 1.0F && attention == 1.0F)) return scaling;
  scaling.kind = RopeScaling::Kind::linear;
  scaling.factor = factor;
  if (type == "linear") return scaling;
  // llama.cpp's YaRN is transformers' without options; it has attn_factor beside what follows from the factor.
  scaling.kind = RopeScaling::Kind::yarn;
  scaling.original_context = settings.integer("rope.scaling.original_context_length").value_or(seq_len);
  const double from_factor = factor <= 1.0F ? 1.0 : 0.1 * std::log(double{factor}) + 1.0;
  scaling.attention_factor = static_cast<float>(from_factor * double{attention});
  scaling.beta_fast = settings.find_float("rope.scaling.yarn_beta_fast").value_or(scaling.beta_fast);
  scaling.beta_slow = settings.find_float("rope.scaling.yarn_beta_slow").value_or(scaling.beta_slow);
  return scaling;
}

// Llama 3's scaling comes as a tensor of divisors, one for each frequency.
std::vector<float> read_rope_factors(const Gguf& gguf, const Config& config, std::string_view name) {
  const auto found = gguf.tensors().find(name);
  if (found == gguf.tensors().end()) return {};
  const GgufTensor& tensor = found->second;
  if (tensor.format->name != "f32" || tensor.shape.size() != 1 || tensor.shape[0] != config.rotary() / 2) {
    throw FormatError(cat("tensor '", name, "' (byte ", tensor.described, ") has ", tensor.shape.size(),
                          " dimensions and rows of ", tensor.shape[0], " ", tensor.format->name,
                          ", expected one dimension of ", config.rotary() / 2, " f32: half of ",
                          config.rotary_dim == 0 ? "head_dim" : "rope.dimension_count"));
  }
  std::vector<float> factors(static_cast<std::size_t>(tensor.shape[0]));
  std::memcpy(factors.data(), tensor.file.data() + tensor.begin, factors.size() * sizeof(float));
  return factors;
}

// Two tensors of divisors, of contexts up to the original and beyond it. attn_factor is what cos and sin are multiplied by.
void read_longrope(const Settings& settings, const Gguf& gguf, Config& config) {
  config.rope_factors = read_rope_factors(gguf, config, kShortFactors);
  config.rope_long_factors = read_rope_factors(gguf, config, kLongFactors);
  if (config.rope_factors.empty() != config.rope_long_factors.empty()) {
    throw FormatError(cat("one of the tensors '", kShortFactors, "' and '", kLongFactors, "' is missing"));
  }
  if (config.rope_factors.empty()) return;
  RopeScaling& scaling = config.rope_scaling;
  scaling = {};
  scaling.kind = RopeScaling::Kind::longrope;
  scaling.original_context = settings.integer("rope.scaling.original_context_length").value_or(config.seq_len);
  if (scaling.original_context < 1) settings.fail("rope.scaling.original_context_length", "expected 1 or more");
  const double factor = static_cast<double>(config.seq_len) / static_cast<double>(scaling.original_context);
  scaling.factor = static_cast<float>(factor);
  scaling.attention_factor = settings.find_float(kAttentionFactor).value_or(1.0F);
}

// llama.cpp has as many as the pattern says too, and of models without one what the family usually has.
Layers read_full_layers(const Settings& settings, const Gguf& gguf, const Family& family, std::int64_t n_layers) {
  const std::string key = settings.full(kWindowPattern);
  const auto found = gguf.metadata().find(key);
  if (found == gguf.metadata().end()) return family.usual_full_layers(n_layers, family.full_every);
  if (!found->second.is_array) {
    const std::int64_t every = gguf.integer(key).value();
    if (every < 0) gguf.fail(key, cat(every, ", expected 0 or more"));
    return family.usual_full_layers(n_layers, every);
  }
  const std::vector<bool> windows = gguf.booleans(key).value();
  if (std::ssize(windows) != n_layers)
    gguf.fail(key, cat(windows.size(), " bools, expected one for each of ", n_layers, " layers"));
  Layers layers;
  for (std::int64_t i = 0; i < n_layers; ++i) {
    if (!windows[static_cast<std::size_t>(i)]) layers.push_back(i);
  }
  return layers;
}

// What the metadata calls the fields of a Config.
std::vector<FieldName> field_names(const Settings& settings, const Family& family) {
  constexpr std::pair<std::string_view, std::string_view> kKeys[] = {
      {"dim", "embedding_length"},
      {"n_layers", "block_count"},
      {"n_heads", "attention.head_count"},
      {"n_kv_heads", "attention.head_count_kv"},
      {"head_dim", "attention.key_length"},
      {"vocab_size", "vocab_size"},
      {"seq_len", "context_length"},
      {"rope_theta", "rope.freq_base"},
      {"local_rope_theta", "rope.freq_base_swa"},
      {"original_context", "rope.scaling.original_context_length"},
      {"attention_factor", "rope.scaling.attn_factor"},
      {"beta_fast", "rope.scaling.yarn_beta_fast"},
      {"beta_slow", "rope.scaling.yarn_beta_slow"},
      {"sliding_window", "attention.sliding_window"},
      {"full_layers", kWindowPattern},
      {"rotary_dim", "rope.dimension_count"},
      {"n_experts", "expert_count"},
      {"n_experts_used", "expert_used_count"},
      {"embedding_multiplier", "embedding_scale"},
      {"residual_multiplier", "residual_scale"},
      {"attention_multiplier", "attention.scale"},
      {"logits_scaling", "logit_scale"},
      {"score_cap", kScoreCap},
      {"logits_cap", kLogitsCap},
  };
  std::vector<FieldName> names;
  for (const auto& [field, key] : kKeys) names.push_back({field, settings.full(key)});
  const bool now = settings.find_float(kFactor).value_or(0.0F) != 0.0F;
  names.push_back({"factor", settings.full(now ? kFactor : kOldFactor)});
  const bool expert_width = family.experts && settings.integer("expert_feed_forward_length");
  names.push_back({"hidden_dim", settings.full(expert_width ? "expert_feed_forward_length" : "feed_forward_length")});
  const bool rms = family.norm == NormKind::rms;
  names.push_back(
      {"norm_eps", settings.full(rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon")});
  return names;
}

void read_experts(const Settings& settings, const ExpertFacts& facts, Config& config) {
  config.n_experts = settings.need("expert_count");
  config.n_experts_used = settings.need("expert_used_count");
  config.hidden_dim = settings.integer("expert_feed_forward_length").value_or(config.hidden_dim);
  config.router_order = facts.order;
  config.router_renormalise = facts.renormalise;
}

std::int64_t embedding_rows(const Gguf& gguf) {
  const std::string name = weight_name(Naming::gguf, Part::tok_embeddings);
  const auto found = gguf.tensors().find(name);
  if (found == gguf.tensors().end() || found->second.shape.size() < 2) {
    throw FormatError(cat("tensor '", name, "' is missing, or is no matrix"));
  }
  return found->second.shape[1];
}

}  // namespace

const Family& read_gguf_family(const Gguf& gguf) {
  if (const auto type = gguf.string("general.type"); type && *type != "model") {
    gguf.fail("general.type", cat(excerpt(*type), ", expected \"model\": this file is no model of its own"));
  }
  const auto architecture = gguf.string("general.architecture");
  if (!architecture) throw FormatError("metadata 'general.architecture' is missing");
  const bool experts = gguf.integer(cat(*architecture, ".expert_count")).value_or(0) > 0;
  const Family* const family = find_gguf_family(*architecture, experts);
  if (family == nullptr) {
    gguf.fail("general.architecture",
              cat(excerpt(*architecture), ", expected ", gguf_families(), ": this version computes no other"));
  }
  return *family;
}

Config read_gguf_config(const Gguf& gguf, const Family& family) {
  const Settings settings(gguf, family);
  settings.refuse_unknown(family);
  Config config;
  config.dim = settings.need("embedding_length");
  config.hidden_dim = settings.find_uniform("feed_forward_length").value_or(0);
  if (family.experts) read_experts(settings, *family.experts, config);
  config.n_layers = settings.need("block_count");
  config.n_heads = settings.find_uniform("attention.head_count").value_or(0);
  config.n_kv_heads = settings.find_uniform("attention.head_count_kv").value_or(config.n_heads);
  const auto key_length = settings.integer("attention.key_length");
  if (!key_length && (config.n_heads < 1 || config.dim % config.n_heads != 0)) {
    throw FormatError(cat("config: dim is ", config.dim, ", which n_heads ", config.n_heads,
                          " does not divide, and there is no metadata '", settings.full("attention.key_length"), "'"));
  }
  config.head_dim = key_length ? *key_length : config.dim / config.n_heads;
  config.vocab_size = settings.integer("vocab_size").value_or(0);
  if (config.vocab_size == 0) config.vocab_size = embedding_rows(gguf);
  config.seq_len = settings.need("context_length");
  family.apply_to(config);
  const bool rms = config.norm == NormKind::rms;
  config.norm_eps = settings.need_float(rms ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon");
  config.rope_theta = settings.find_float("rope.freq_base").value_or(config.rope_theta);
  config.rope_scaling = read_rope_scaling(settings, config.seq_len);
  const bool yarn = config.rope_scaling.kind == RopeScaling::Kind::yarn;
  if (yarn) config.rope_scaling.truncate = family.gguf_yarn_truncates;
  config.sliding_window = settings.integer("attention.sliding_window").value_or(0);
  if (config.sliding_window > 0 && family.windows == Windows::some && family.full_every == 0) {
    if (config.sliding_window < config.seq_len) {
      settings.fail("attention.sliding_window",
                    cat(config.sliding_window, ", and which layers have a window is not in the file"));
    }
    config.sliding_window = 0;
  }
  config.rope_style = family.gguf_rope_style;
  // As llama.cpp tells it, whatever the metadata says.
  if (family.computes_switch("use_parallel_residual")) {
    config.parallel = !gguf.tensors().contains(weight_name(Naming::gguf, Part::ffn_norm, 0));
  }
  if (family.computes_switch("multipliers")) {
    config.embedding_multiplier = settings.find_float("embedding_scale").value_or(1.0F);
    config.residual_multiplier = settings.find_float("residual_scale").value_or(1.0F);
    config.attention_multiplier = settings.find_float("attention.scale").value_or(0.0F);
    config.logits_scaling = settings.find_float("logit_scale").value_or(1.0F);
  }
  const auto cap = [&](std::string_view key, double usual) {
    return family.computes_switch(key) ? settings.find_float(key).value_or(static_cast<float>(usual)) : 0.0F;
  };
  config.score_cap = cap(kScoreCap, family.score_cap);
  config.logits_cap = cap(kLogitsCap, family.logits_cap);
  if (family.scaled_embedding) config.embedding_multiplier = std::sqrt(static_cast<float>(config.dim));
  if (family.logit_scale > 0) config.logits_scaling = 1.0F / settings.need_float("logit_scale");
  if (family.gguf_wide_scale > 0 && config.n_layers == family.gguf_wide_scale && config.n_heads > 0) {
    config.attention_multiplier = 1.0F / std::sqrt(static_cast<float>(config.dim / config.n_heads));
  }
  config.tied = !gguf.tensors().contains(weight_name(Naming::gguf, Part::output));
  const std::vector<FieldName> names = field_names(settings, family);
  validate(config, names);  // before what depends on head_dim and on the number of layers
  config.no_rope_layers = family.usual_no_rope_layers(config.n_layers, family.no_rope_every);
  if (config.sliding_window > 0) config.full_layers = read_full_layers(settings, gguf, family, config.n_layers);
  if (config.sliding_window > 0 && family.rope_in_windows) config.no_rope_layers = config.full_layers;
  if (config.sliding_window > 0 && family.local_rope) {
    const double usual = family.local_rope_theta > 0 ? family.local_rope_theta : double{config.rope_theta};
    const float theta = settings.find_float("rope.freq_base_swa").value_or(static_cast<float>(usual));
    if (theta == 0.0F) settings.fail("rope.freq_base_swa", "0, expected a number above 0");
    const bool other = theta != config.rope_theta || config.rope_scaling.kind != RopeScaling::Kind::none;
    if (other) config.local_rope_theta = theta;
  } else if (settings.find_float("rope.freq_base_swa")) {
    settings.fail("rope.freq_base_swa", "of a model whose layers are all turned alike, which is not implemented");
  }

  if (family.computes_switch("partial_rotary_factor")) {
    const std::int64_t turned = settings.integer("rope.dimension_count").value_or(config.head_dim);
    if (turned < 1) settings.fail("rope.dimension_count", cat(turned, ", expected 1 or more"));
    config.rotary_dim = turned == config.head_dim ? 0 : turned;
    validate(config, names);
    read_longrope(settings, gguf, config);
  } else {
    settings.expect_equal("rope.dimension_count", config.head_dim, "the length of a head");
  }
  if (config.rope_factors.empty()) config.rope_factors = read_rope_factors(gguf, config, kRopeFactors);
  settings.expect_equal("attention.value_length", config.head_dim, "the length of keys");
  validate(config, names);
  return config;
}

}  // namespace llama2cpp
