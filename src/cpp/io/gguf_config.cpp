// llama.cpp writes "llama" for all models that compute as Llama does: Llama 1 to 3, Mistral, SmolLM and many others.
// Whatever else a file says about its architecture must be known to change nothing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "core/check.h"
#include "core/quote.h"
#include "io/gguf_model.h"
#include "io/names.h"

namespace llama2cpp {
namespace {

constexpr std::string_view kArchitecture = "llama";
constexpr std::string_view kPrefix = "llama.";
constexpr std::string_view kRopeFactors = "rope_freqs.weight";
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
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",  // scaling.factor's name until the autumn of 2023
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
    "expert_used_count",  // expert_count must be 0
    "expert_feed_forward_length",
};

// What computes something else, unless it has this value.
struct Neutral {
  std::string_view key;
  double value;
};

constexpr Neutral kNeutral[] = {
    {"expert_count", 0},
    {"expert_shared_count", 0},
    {"use_parallel_residual", 0},
    {"attention.causal", 1},
    {"attention.clamp_kqv", 0},
    {"attention.max_alibi_bias", 0},
    {"attn_logit_softcapping", 0},
    {"final_logit_softcapping", 0},
    {"attention.scale", 0},  // llama.cpp: 0 is 1 / sqrt(head_dim)
    {"attention.output_scale", 1},
    {"attention.temperature_scale", 0},
    {"logit_scale", 1},
    {"residual_scale", 1},
    {"embedding_scale", 1},
    {"rope.scaling.yarn_log_multiplier", 0},
    {"rope.scaling.yarn_ext_factor", 1},
    {"rope.scaling.yarn_attn_factor", 1},
    {"pooling_type", 0},
};

std::string full(std::string_view key) { return cat(kPrefix, key); }

template <class List>
bool is_in(const List& list, std::string_view key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

// A bool as 0 or 1.
double any_number(const Gguf& gguf, const std::string& key) {
  const GgufValue& value = gguf.metadata().at(key);
  if (value.type == GgufType::boolean) return gguf.boolean(key).value_or(false) ? 1 : 0;
  if (value.type == GgufType::f32 || value.type == GgufType::f64) return gguf.number(key).value_or(0);
  return static_cast<double>(gguf.integer(key).value_or(0));
}

void refuse_unknown_metadata(const Gguf& gguf) {
  for (const auto& [name, value] : gguf.metadata()) {
    if (!name.starts_with(kPrefix)) continue;
    const std::string_view key = name.substr(kPrefix.size());
    if (is_in(kRead, key) || is_in(kHarmless, key)) continue;
    const auto* const neutral = std::find_if(std::begin(kNeutral), std::end(kNeutral),
                                             [&](const Neutral& candidate) { return candidate.key == key; });
    if (neutral == std::end(kNeutral)) {
      throw FormatError(cat("metadata ", excerpt(name), " (byte ", value.offset,
                            ") is not known, and may stand for something that this version does not compute"));
    }
    const double found = any_number(gguf, std::string(name));
    if (found != neutral->value) {
      gguf.fail(name, cat(found, ", and only ", neutral->value,
                          " is implemented: the model computes something that "
                          "this version does not"));
    }
  }
}

std::int64_t need(const Gguf& gguf, std::string_view key) {
  const auto value = gguf.integer(full(key));
  if (!value) throw FormatError(cat("metadata '", full(key), "' is missing"));
  return *value;
}

std::optional<float> find_float(const Gguf& gguf, std::string_view key) {
  const auto value = gguf.number(full(key));
  return value ? std::optional(static_cast<float>(*value)) : std::nullopt;
}

// A number, or one for each layer where all are equal.
std::optional<std::int64_t> find_uniform(const Gguf& gguf, std::string_view key) {
  const auto found = gguf.metadata().find(full(key));
  if (found == gguf.metadata().end() || !found->second.is_array) return gguf.integer(full(key));
  const std::vector<std::int64_t> values = gguf.integers(full(key)).value();
  const auto other = [&](std::int64_t value) { return value != values.front(); };
  if (values.empty() || std::any_of(values.begin(), values.end(), other)) {
    gguf.fail(full(key), "an array of numbers that differ, and layers that differ are not implemented");
  }
  return values.front();
}

void expect_equal(const Gguf& gguf, std::string_view key, std::int64_t value, std::int64_t expected,
                  const char* whose) {
  if (value != expected) gguf.fail(full(key), cat(value, ", and only ", expected, ", ", whose, ", is implemented"));
}

RopeScaling read_rope_scaling(const Gguf& gguf, std::int64_t seq_len) {
  // llama.cpp: a factor without a type is of linear scaling, and 0 is no factor. Whatever the type, cos and sin are multiplied
  // by attn_factor.
  const float attention = find_float(gguf, kAttentionFactor).value_or(1.0F);
  float factor = find_float(gguf, "rope.scaling.factor").value_or(0.0F);
  if (factor == 0.0F) factor = find_float(gguf, "rope.scale_linear").value_or(0.0F);
  const std::string_view type = gguf.string(full("rope.scaling.type")).value_or("linear");
  if (type != "linear" && type != "none" && type != "yarn") {
    gguf.fail(full("rope.scaling.type"),
              cat(excerpt(type), ", expected \"none\", \"linear\" or \"yarn\": others are not implemented"));
  }
  if (attention != 1.0F && type != "yarn") {
    gguf.fail(full(kAttentionFactor), cat(attention, ", and without rope.scaling.type \"yarn\" only 1 is implemented"));
  }
  if (factor == 0.0F) factor = 1.0F;
  RopeScaling scaling;
  if (type == "none" || (factor == 1.0F && attention == 1.0F)) return scaling;
  scaling.kind = RopeScaling::Kind::linear;
  scaling.factor = factor;
  if (type == "linear") return scaling;
  // llama.cpp's YaRN is transformers' without options; it has attn_factor beside what follows from the factor.
  scaling.kind = RopeScaling::Kind::yarn;
  scaling.original_context = gguf.integer(full("rope.scaling.original_context_length")).value_or(seq_len);
  const double from_factor = factor <= 1.0F ? 1.0 : 0.1 * std::log(double{factor}) + 1.0;
  scaling.attention_factor = static_cast<float>(from_factor * double{attention});
  scaling.beta_fast = find_float(gguf, "rope.scaling.yarn_beta_fast").value_or(scaling.beta_fast);
  scaling.beta_slow = find_float(gguf, "rope.scaling.yarn_beta_slow").value_or(scaling.beta_slow);
  return scaling;
}

// Llama 3's scaling comes as a tensor of divisors, one for each frequency.
std::vector<float> read_rope_factors(const Gguf& gguf, const Config& config) {
  const auto found = gguf.tensors().find(kRopeFactors);
  if (found == gguf.tensors().end()) return {};
  const GgufTensor& tensor = found->second;
  if (tensor.format->name != "f32" || tensor.shape.size() != 1 || tensor.shape[0] != config.head_dim / 2) {
    throw FormatError(cat("tensor '", kRopeFactors, "' (byte ", tensor.described, ") has ", tensor.shape.size(),
                          " dimensions and rows of ", tensor.shape[0], " ", tensor.format->name,
                          ", expected one dimension of ", config.head_dim / 2, " f32: half of head_dim"));
  }
  std::vector<float> factors(static_cast<std::size_t>(tensor.shape[0]));
  std::memcpy(factors.data(), tensor.file.data() + tensor.begin, factors.size() * sizeof(float));
  return factors;
}

std::int64_t embedding_rows(const Gguf& gguf) {
  const std::string name = weight_name(Naming::gguf, Part::tok_embeddings);
  const auto found = gguf.tensors().find(name);
  if (found == gguf.tensors().end() || found->second.shape.size() < 2) {
    throw FormatError(cat("tensor '", name, "' is missing, or is no matrix"));
  }
  return found->second.shape[1];
}

void check_architecture(const Gguf& gguf) {
  if (const auto type = gguf.string("general.type"); type && *type != "model") {
    gguf.fail("general.type", cat(excerpt(*type), ", expected \"model\": this file is no model of its own"));
  }
  const auto architecture = gguf.string("general.architecture");
  if (!architecture) throw FormatError("metadata 'general.architecture' is missing");
  if (*architecture != kArchitecture) {
    gguf.fail("general.architecture",
              cat(excerpt(*architecture), ", expected \"", kArchitecture, "\": this version computes no other"));
  }
}

}  // namespace

Config read_gguf_config(const Gguf& gguf) {
  check_architecture(gguf);
  refuse_unknown_metadata(gguf);
  Config config;
  config.dim = need(gguf, "embedding_length");
  config.hidden_dim = find_uniform(gguf, "feed_forward_length").value_or(0);
  config.n_layers = need(gguf, "block_count");
  config.n_heads = find_uniform(gguf, "attention.head_count").value_or(0);
  config.n_kv_heads = find_uniform(gguf, "attention.head_count_kv").value_or(config.n_heads);
  const auto key_length = gguf.integer(full("attention.key_length"));
  if (!key_length && (config.n_heads < 1 || config.dim % config.n_heads != 0)) {
    throw FormatError(cat("config: dim is ", config.dim, ", which n_heads ", config.n_heads,
                          " does not divide, and there is no metadata '", full("attention.key_length"), "'"));
  }
  config.head_dim = key_length ? *key_length : config.dim / config.n_heads;
  config.vocab_size = gguf.integer(full("vocab_size")).value_or(0);
  if (config.vocab_size == 0) config.vocab_size = embedding_rows(gguf);
  config.seq_len = need(gguf, "context_length");
  const auto eps = find_float(gguf, "attention.layer_norm_rms_epsilon");
  if (!eps) throw FormatError(cat("metadata '", full("attention.layer_norm_rms_epsilon"), "' is missing"));
  config.norm_eps = *eps;
  config.rope_theta = find_float(gguf, "rope.freq_base").value_or(config.rope_theta);
  config.rope_scaling = read_rope_scaling(gguf, config.seq_len);
  config.sliding_window = gguf.integer(full("attention.sliding_window")).value_or(0);
  config.rope_style = RopeStyle::interleaved;
  config.tied = !gguf.tensors().contains(weight_name(Naming::gguf, Part::output));
  config.validate();  // before what depends on head_dim

  config.rope_factors = read_rope_factors(gguf, config);
  if (const auto value_length = gguf.integer(full("attention.value_length"))) {
    expect_equal(gguf, "attention.value_length", *value_length, config.head_dim, "the length of keys");
  }
  if (const auto turned = gguf.integer(full("rope.dimension_count"))) {
    expect_equal(gguf, "rope.dimension_count", *turned, config.head_dim, "the length of a head");
  }
  config.validate();
  return config;
}

}  // namespace llama2cpp
