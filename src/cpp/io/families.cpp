// The rows.
#include "io/families.h"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "core/check.h"
#include "core/quote.h"

namespace llama2cpp {
namespace {

constexpr Switch kSwitches[] = {
    {"attention_bias", "", 0},
    {"attention_out_bias", "", 0},
    {"mlp_bias", "", 0},
    {"use_bias", "", 0},
    {"rope_interleaved", "", 0},
    {"use_qk_norm", "", 0},
    {"qk_norm", "", 0},
    {"attn_logit_softcapping", "attn_logit_softcapping", 0},
    {"final_logit_softcapping", "final_logit_softcapping", 0},
    {"embedding_multiplier", "embedding_scale", 1},
    {"residual_multiplier", "residual_scale", 1},
    {"logits_scaling", "", 1},
    {"logit_scale", "logit_scale", 1},
    {"clip_qkv", "attention.clamp_kqv", 0},
    {"num_experts", "expert_count", 0},
    {"num_local_experts", "", 0},
    {"is_encoder_decoder", "", 0},
    {"add_cross_attention", "", 0},
    {"", "expert_shared_count", 0},
    {"use_parallel_residual", "use_parallel_residual", 0},
    {"no_rope_layers", "", 1},  // a number for each layer
    {"", "attention.causal", 1},
    {"", "attention.max_alibi_bias", 0},
    {"", "attention.scale", 0},  // llama.cpp: 0 is 1 / sqrt(head_dim)
    {"", "attention.output_scale", 1},
    {"", "attention.temperature_scale", 0},
    {"", "rope.scaling.yarn_log_multiplier", 0},
    {"", "rope.scaling.yarn_ext_factor", 1},
    {"", "rope.scaling.yarn_attn_factor", 1},
    {"", "pooling_type", 0},
};
// pretraining_tp is not among them: it splits products into parts that are summed afterwards, as they were in training,
// and only rounding tells the difference.

constexpr Family kFamilies[] = {
    {.model_type = "llama",
     .architectures = {"LlamaForCausalLM", "LLaMAForCausalLM", "LlamaModel"},
     .gguf = "llama",  // all that compute as it does: Llama 1 to 3, Mistral, SmolLM and many others
     .hugging_face_rope_style = RopeStyle::half_split,
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {"attention_bias", "mlp_bias"},
     .seq_len = 2048,
     .n_kv_heads = std::nullopt,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .has_window = false,
     .sliding_window = 0},
    {.model_type = "mistral",
     .architectures = {"MistralForCausalLM", "", "MistralModel"},
     .gguf = "",
     .hugging_face_rope_style = RopeStyle::half_split,
     .gguf_rope_style = RopeStyle::interleaved,
     .computes = {},
     .seq_len = 131072,
     .n_kv_heads = 8,
     .norm_eps = 1e-6,
     .rope_theta = 10000,
     .has_window = true,
     .sliding_window = 4096},
};

// The row whose `name` is this one.
const Family* find(std::string_view Family::*name, std::string_view wanted) {
  const auto* const found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                         [&](const Family& family) { return family.*name == wanted; });
  return found == std::end(kFamilies) || wanted.empty() ? nullptr : found;
}

bool contains(std::span<const Part> parts, Part part) {
  return std::find(parts.begin(), parts.end(), part) != parts.end();
}

bool holds(const Family& family, std::span<const Part> parts) {
  return std::all_of(parts.begin(), parts.end(), [&](Part part) { return family.may_have(part); }) &&
         std::all_of(family.parts.begin(), family.parts.end(), [&](Part part) { return contains(parts, part); });
}

// "a sliding window (sliding_window) and biases"
std::string features(const Config* config, std::span<const Part> parts) {
  std::string text = config != nullptr && config->sliding_window > 0 ? "a sliding window (sliding_window)" : "";
  bool biases = false;
  for (const Part part : parts) {
    const bool bias = facts(part).kind == PartKind::bias;
    if (!bias || !biases) text += cat(text.empty() ? "" : " and ", bias ? "biases" : facts(part).name);
    biases |= bias;
  }
  return text;
}

std::string list(std::string_view Family::*name) {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) {
    if (!(family.*name).empty()) names.push_back(excerpt(family.*name));
  }
  std::string text;
  for (std::size_t i = 0; i < names.size(); ++i) {
    text += cat(i == 0 ? "" : i + 1 == names.size() ? " or " : ", ", names[i]);
  }
  return text;
}

}  // namespace

std::span<const Switch> switches() { return kSwitches; }

bool Family::computes_switch(std::string_view hugging_face) const {
  return !hugging_face.empty() &&
         std::find(std::begin(computes), std::end(computes), hugging_face) != std::end(computes);
}

bool Family::may_have(Part part) const {
  return facts(part).kind == PartKind::bias ? computes_switch(bias_switch(part)) : contains(parts, part);
}

const Family* find_hugging_face_family(std::string_view model_type) { return find(&Family::model_type, model_type); }
const Family* find_gguf_family(std::string_view architecture) { return find(&Family::gguf, architecture); }

const Family& hugging_face_family_of(const Config& config, std::span<const Part> parts) {
  for (const Family& family : kFamilies) {
    if (family.has_window == (config.sliding_window > 0) && holds(family, parts)) return family;
  }
  throw std::invalid_argument(cat("transformers has no model that this version knows with ", features(&config, parts)));
}

const Family& gguf_family_of(std::span<const Part> parts) {
  for (const Family& family : kFamilies) {
    if (!family.gguf.empty() && holds(family, parts)) return family;
  }
  throw std::invalid_argument(cat("llama.cpp has no model that this version knows with ", features(nullptr, parts)));
}

std::string hugging_face_families() { return list(&Family::model_type); }
std::string gguf_families() { return list(&Family::gguf); }

}  // namespace llama2cpp
