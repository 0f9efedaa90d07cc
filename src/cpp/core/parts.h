// The weights of a Llama by their part in it. The table is core/parts.inc: everything that is true of one part alone is
// said there, and readers, writers, fields and names are made from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>

#include "core/config.h"

namespace llama2cpp {

// meta: Llama's own and llama2.c's names. hugging_face: transformers' names. gguf: llama.cpp's names.
enum class Naming : std::uint8_t { meta, hugging_face, gguf };

enum class Part : std::uint8_t {
#define MODEL_PART(kind, part, ...) part,
#define LAYER_PART(half, kind, part, ...) part,
#define EXPERT_PART(kind, part, ...) part,
#include "core/parts.inc"
};

// Whether the model has one, or each layer: then which half of a layer it belongs to.
enum class Scope : std::uint8_t { model, attention, mlp };

enum class PartKind : std::uint8_t {
  table,          // [rows, columns], read row by row
  matrix,         // [rows, columns], multiplied with
  gain,           // [columns], multiplied with what a norm gives
  experts,        // a matrix for each expert: {} in their names is its number
  bias,           // [columns], added to what the matrix of the same name gives
  expert_biases,  // a bias for each expert, as experts
  sinks,          // [columns], one more score of each head, whose weight goes nowhere
};

// A size that follows from a Config.
enum class Size : std::uint8_t {
  one,
  dim,
  q_dim,
  kv_dim,
  q_norm_dim,
  k_norm_dim,
  hidden_dim,
  n_heads,
  n_experts,
  vocab_size
};

enum class Need : std::uint8_t {
  always,       // but for the matrices of an MLP in models with experts
  untied,       // unless the output is the embedding table
  optional,     // all layers have it, or none
  qk_norm,      // where the config has such norms, and so on
  routed,       // with experts
  routed_bias,  // with experts: all layers have it, or none
  sinks,        // all layers have it, or none
  norm_before,
  norm_mlp,  // before the MLP, where it does not read what attention does
  norm_after,
  norm_gain,
  norm_bias,  // of a LayerNorm: all layers have it, or none
  norm_last_bias,
  norm_mlp_bias,  //
  gate,
  gate_bias,  // all layers have it, or none
};

struct PartFacts {
  Part part;
  std::string_view name;  // the enumerator's
  Scope scope;
  PartKind kind;
  std::string_view meta;  // in each family of names, without a layer's prefix, and without ".weight" or ".bias"
  std::string_view hugging_face;
  std::string_view gguf;
  Size rows;  // one for gains and biases
  Size cols;
  Need need;
  bool rotary;             // rows of each head, or a bias's numbers, are in the order of Config::rope_style
  std::string_view lens;   // TransformerLens's name, without "blocks.{layer}."
  std::string_view reads;  // the hook point whose activation it is multiplied with, without "blocks.{layer}."
};

inline constexpr PartFacts kParts[] = {
#define MODEL_PART(kind, part, meta, hugging_face, gguf, rows, cols, need, rotary, lens, reads) \
  {Part::part, #part,      Scope::model, PartKind::kind, meta, hugging_face, gguf,              \
   Size::rows, Size::cols, Need::need,   rotary,         lens, reads},
#define LAYER_PART(half, kind, part, meta, hugging_face, gguf, rows, cols, need, rotary, lens, reads) \
  {Part::part, #part,      Scope::half, PartKind::kind, meta, hugging_face, gguf,                     \
   Size::rows, Size::cols, Need::need,  rotary,         lens, reads},
#define EXPERT_PART(kind, part, meta, hugging_face, gguf, rows, cols, need, rotary, lens, reads) \
  {Part::part, #part,      Scope::mlp, PartKind::kind, meta, hugging_face, gguf,                 \
   Size::rows, Size::cols, Need::need, rotary,         lens, reads},
#include "core/parts.inc"
};

constexpr const PartFacts& facts(Part part) { return kParts[static_cast<std::size_t>(part)]; }

constexpr bool is_vector(PartKind kind) {
  return kind == PartKind::gain || kind == PartKind::bias || kind == PartKind::expert_biases || kind == PartKind::sinks;
}
constexpr bool per_expert(PartKind kind) { return kind == PartKind::experts || kind == PartKind::expert_biases; }
constexpr bool is_vector(Part part) { return is_vector(facts(part).kind); }
constexpr bool per_layer(Part part) { return facts(part).scope != Scope::model; }

struct MatrixShape {
  std::int64_t rows;
  std::int64_t cols;
};

// Whether only models without experts have the part, or only those with them.
constexpr bool of_dense_mlp(Part part) {
  const PartFacts& row = facts(part);
  const bool needed = row.need == Need::always || row.need == Need::gate;
  return row.scope == Scope::mlp && row.kind == PartKind::matrix && needed;
}
constexpr bool of_experts(Part part) {
  return facts(part).need == Need::routed || facts(part).need == Need::routed_bias;
}

// Whether a model of this config has the part: nothing where the model's file says.
constexpr std::optional<bool> is_needed(const Config& config, Part part) {
  switch (facts(part).need) {
    case Need::untied:
      return !config.tied;
    case Need::optional:
      if (facts(part).scope == Scope::mlp && config.n_experts > 0)
        return false;  // of the MLP that they are in place of
      return {};
    case Need::sinks:
      return {};
    case Need::qk_norm:
      return config.qk_norm != QkNorm::none;
    case Need::routed:
      return config.n_experts > 0;
    case Need::routed_bias:
      return config.n_experts > 0 ? std::optional<bool>() : false;
    case Need::norm_before:
      return config.norms_before() && config.norm != NormKind::layer_plain;
    case Need::norm_mlp:
      return config.norms_mlp() && config.norm != NormKind::layer_plain;
    case Need::norm_after:
      return config.norms_after() && config.norm != NormKind::layer_plain;
    case Need::norm_gain:
      return config.norm != NormKind::layer_plain;
    case Need::norm_bias:
      return config.norms_before() && config.norm == NormKind::layer ? std::optional<bool>() : false;
    case Need::norm_last_bias:
      return config.norm == NormKind::layer ? std::optional<bool>() : false;
    case Need::norm_mlp_bias:
      return config.norms_mlp() && config.norm == NormKind::layer ? std::optional<bool>() : false;
    case Need::gate:
      return config.gated && config.n_experts == 0;
    case Need::gate_bias:
      return config.gated && config.n_experts == 0 ? std::optional<bool>() : false;
    default:
      return !of_dense_mlp(part) || config.n_experts == 0;
  }
}

// How many of it a layer, or the model, has.
constexpr std::int64_t count_of(const Config& config, Part part) {
  return per_expert(facts(part).kind) ? config.n_experts : 1;
}

// The shape that a config gives a matrix: y = W x for x [cols] and y [rows]; a vector is [1, cols].
MatrixShape part_shape(const Config& config, Part part);

// The table's words as it spells them, for Python.
struct PartWords {
  std::string_view scope, kind, rows, cols, need;
};
const PartWords& words(Part part);

// What files of panels and Python call a family.
std::string_view to_string(Naming naming);

}  // namespace llama2cpp
