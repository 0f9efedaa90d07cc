// The table of names, and its use in both directions.
#include "io/names.h"

#include <algorithm>
#include <string_view>

#include "core/check.h"

namespace llama2cpp {
namespace {

struct Names {
  Part part;
  std::string_view meta;
  std::string_view hugging_face;
};

// In the order of Part. {} is the layer.
constexpr Names kNames[] = {
    {Part::tok_embeddings, "tok_embeddings.weight", "model.embed_tokens.weight"},
    {Part::attention_norm, "layers.{}.attention_norm.weight", "model.layers.{}.input_layernorm.weight"},
    {Part::wq, "layers.{}.attention.wq.weight", "model.layers.{}.self_attn.q_proj.weight"},
    {Part::wk, "layers.{}.attention.wk.weight", "model.layers.{}.self_attn.k_proj.weight"},
    {Part::wv, "layers.{}.attention.wv.weight", "model.layers.{}.self_attn.v_proj.weight"},
    {Part::wo, "layers.{}.attention.wo.weight", "model.layers.{}.self_attn.o_proj.weight"},
    {Part::ffn_norm, "layers.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight"},
    {Part::w1, "layers.{}.feed_forward.w1.weight", "model.layers.{}.mlp.gate_proj.weight"},
    {Part::w2, "layers.{}.feed_forward.w2.weight", "model.layers.{}.mlp.down_proj.weight"},
    {Part::w3, "layers.{}.feed_forward.w3.weight", "model.layers.{}.mlp.up_proj.weight"},
    {Part::norm, "norm.weight", "model.norm.weight"},
    {Part::output, "output.weight", "lm_head.weight"},
};

constexpr std::string_view kLayer = "{}";

std::string_view pattern_of(const Names& names, Naming naming) {
  return naming == Naming::meta ? names.meta : names.hugging_face;
}

bool matches(std::string_view name, std::string_view pattern) {
  const std::size_t hole = pattern.find(kLayer);
  if (hole == std::string_view::npos) return name == pattern;
  const std::string_view before = pattern.substr(0, hole);
  const std::string_view after = pattern.substr(hole + kLayer.size());
  if (name.size() <= before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) return false;
  const std::string_view layer = name.substr(before.size(), name.size() - before.size() - after.size());
  return std::all_of(layer.begin(), layer.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// The first of `names` that the family has, or null.
const std::string* find_name(std::span<const std::string> names, Naming naming) {
  for (const std::string& name : names) {
    for (const Names& row : kNames) {
      if (matches(name, pattern_of(row, naming))) return &name;
    }
  }
  return nullptr;
}

}  // namespace

bool per_layer(Part part) { return kNames[static_cast<std::size_t>(part)].meta.find(kLayer) != std::string_view::npos; }

std::string weight_name(Naming naming, Part part, std::int64_t layer) {
  std::string name(pattern_of(kNames[static_cast<std::size_t>(part)], naming));
  const std::size_t hole = name.find(kLayer);
  if (hole != std::string::npos) name.replace(hole, kLayer.size(), std::to_string(layer));
  return name;
}

Naming detect_naming(std::span<const std::string> names) {
  const std::string* meta = find_name(names, Naming::meta);
  const std::string* hugging_face = find_name(names, Naming::hugging_face);
  if (meta != nullptr && hugging_face != nullptr) {
    throw std::invalid_argument(cat("the names mix two families: '", *meta, "' is Llama's and llama2.c's, '",
                                    *hugging_face, "' is Hugging Face's"));
  }
  if (meta == nullptr && hugging_face == nullptr) {
    throw std::invalid_argument(
        cat("none of the ", names.size(), " names is a Llama's: looked for names such as '",
            weight_name(Naming::meta, Part::tok_embeddings), "' and '", weight_name(Naming::meta, Part::wq),
            "' (Llama's and llama2.c's), '", weight_name(Naming::hugging_face, Part::tok_embeddings), "' and '",
            weight_name(Naming::hugging_face, Part::wq), "' (Hugging Face's)", names.empty() ? "" : "; the first is '",
            names.empty() ? "" : names.front(), names.empty() ? "" : "'"));
  }
  return meta != nullptr ? Naming::meta : Naming::hugging_face;
}

}  // namespace llama2cpp
