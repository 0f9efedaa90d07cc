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
  std::string_view gguf;
};

// In the order of Part. {} is the layer.
constexpr Names kNames[] = {
    {Part::tok_embeddings, "tok_embeddings.weight", "model.embed_tokens.weight", "token_embd.weight"},
    {Part::attention_norm, "layers.{}.attention_norm.weight", "model.layers.{}.input_layernorm.weight",
     "blk.{}.attn_norm.weight"},
    {Part::wq, "layers.{}.attention.wq.weight", "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"},
    {Part::wk, "layers.{}.attention.wk.weight", "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"},
    {Part::wv, "layers.{}.attention.wv.weight", "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"},
    {Part::wo, "layers.{}.attention.wo.weight", "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"},
    {Part::ffn_norm, "layers.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight",
     "blk.{}.ffn_norm.weight"},
    {Part::w1, "layers.{}.feed_forward.w1.weight", "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"},
    {Part::w2, "layers.{}.feed_forward.w2.weight", "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"},
    {Part::w3, "layers.{}.feed_forward.w3.weight", "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"},
    {Part::norm, "norm.weight", "model.norm.weight", "output_norm.weight"},
    {Part::output, "output.weight", "lm_head.weight", "output.weight"},
    {Part::bq, "layers.{}.attention.wq.bias", "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"},
    {Part::bk, "layers.{}.attention.wk.bias", "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"},
    {Part::bv, "layers.{}.attention.wv.bias", "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"},
    {Part::bo, "layers.{}.attention.wo.bias", "model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias"},
    {Part::b1, "layers.{}.feed_forward.w1.bias", "model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias"},
    {Part::b2, "layers.{}.feed_forward.w2.bias", "model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias"},
    {Part::b3, "layers.{}.feed_forward.w3.bias", "model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias"},
};

struct Family {
  Naming naming;
  std::string_view whose;
};

constexpr Family kFamilies[] = {
    {Naming::meta, "Llama's and llama2.c's"},
    {Naming::hugging_face, "Hugging Face's"},
    {Naming::gguf, "GGUF's"},
};

constexpr std::string_view kLayer = "{}";
constexpr std::size_t kMaxLayerDigits = 9;  // a layer's number is below 10^9, whatever a file calls its tensors

std::string_view pattern_of(const Names& names, Naming naming) {
  switch (naming) {
    case Naming::meta:
      return names.meta;
    case Naming::hugging_face:
      return names.hugging_face;
    case Naming::gguf:
      return names.gguf;
  }
  throw std::invalid_argument(cat("no such naming: ", static_cast<int>(naming)));
}

// The layer in a name that fits the pattern: 0 where the pattern has none.
std::optional<std::int64_t> match(std::string_view name, std::string_view pattern) {
  const std::size_t hole = pattern.find(kLayer);
  if (hole == std::string_view::npos) return name == pattern ? std::optional<std::int64_t>(0) : std::nullopt;
  const std::string_view before = pattern.substr(0, hole);
  const std::string_view after = pattern.substr(hole + kLayer.size());
  if (name.size() <= before.size() + after.size() || !name.starts_with(before) || !name.ends_with(after)) return {};
  const std::string_view digits = name.substr(before.size(), name.size() - before.size() - after.size());
  if (digits.size() > kMaxLayerDigits || (digits.size() > 1 && digits.front() == '0')) return {};
  std::int64_t layer = 0;
  for (const char c : digits) {
    if (c < '0' || c > '9') return {};
    layer = layer * 10 + (c - '0');
  }
  return layer;
}

// The first of `names` that this family has and no other, or null.
const std::string* find_name(std::span<const std::string> names, Naming naming) {
  const auto own = [&](const std::string& name) {
    return std::all_of(std::begin(kFamilies), std::end(kFamilies), [&](const Family& family) {
      return find_part(family.naming, name).has_value() == (family.naming == naming);
    });
  };
  const auto found = std::find_if(names.begin(), names.end(), own);
  return found == names.end() ? nullptr : &*found;
}

[[noreturn]] void throw_no_family(std::span<const std::string> names) {
  std::string looked_for;
  for (const Family& family : kFamilies) {
    looked_for += cat(looked_for.empty() ? "" : ", ", "'", weight_name(family.naming, Part::tok_embeddings), "' and '",
                      weight_name(family.naming, Part::wq), "' (", family.whose, ")");
  }
  throw std::invalid_argument(cat("none of the ", names.size(), " names is a Llama's: looked for names such as ",
                                  looked_for, names.empty() ? "" : "; the first is '",
                                  names.empty() ? "" : names.front(), names.empty() ? "" : "'"));
}

}  // namespace

bool per_layer(Part part) { return kNames[static_cast<std::size_t>(part)].meta.find(kLayer) != std::string_view::npos; }

std::string weight_name(Naming naming, Part part, std::int64_t layer) {
  const std::string_view pattern = pattern_of(kNames[static_cast<std::size_t>(part)], naming);
  const std::size_t hole = pattern.find(kLayer);
  if (hole == std::string_view::npos) return std::string(pattern);
  return cat(pattern.substr(0, hole), layer, pattern.substr(hole + kLayer.size()));
}

std::optional<NamedPart> find_part(Naming naming, std::string_view name) {
  for (const Names& row : kNames) {
    if (const auto layer = match(name, pattern_of(row, naming))) return NamedPart{row.part, *layer};
  }
  return {};
}

Naming detect_naming(std::span<const std::string> names) {
  const Family* found = nullptr;
  const std::string* example = nullptr;
  for (const Family& family : kFamilies) {
    const std::string* name = find_name(names, family.naming);
    if (name == nullptr) continue;
    if (found != nullptr) {
      throw std::invalid_argument(
          cat("the names mix two families: '", *example, "' is ", found->whose, ", '", *name, "' is ", family.whose));
    }
    found = &family;
    example = name;
  }
  if (found == nullptr) throw_no_family(names);
  return found->naming;
}

}  // namespace llama2cpp
