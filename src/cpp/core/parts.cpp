// What the words of the table of parts stand for.
#include "core/parts.h"

#include <stdexcept>

#include "core/check.h"

namespace llama2cpp {
namespace {

constexpr PartWords kWords[] = {
#define MODEL_PART(kind, part, meta, hugging_face, gguf, rows, cols, need, ...) {"model", #kind, #rows, #cols, #need},
#define LAYER_PART(half, kind, part, meta, hugging_face, gguf, rows, cols, need, ...) \
  {#half, #kind, #rows, #cols, #need},
#define EXPERT_PART(kind, part, meta, hugging_face, gguf, rows, cols, need, ...) {"mlp", #kind, #rows, #cols, #need},
#include "core/parts.inc"
};

std::int64_t value_of(Size size, const Config& config) {
  switch (size) {
    case Size::one:
      return 1;
    case Size::dim:
      return config.dim;
    case Size::q_dim:
      return config.q_dim();
    case Size::kv_dim:
      return config.kv_dim();
    case Size::q_norm_dim:
      return config.q_norm_dim();
    case Size::k_norm_dim:
      return config.k_norm_dim();
    case Size::hidden_dim:
      return config.hidden_dim;
    case Size::n_heads:
      return config.n_heads;
    case Size::n_experts:
      return config.n_experts;
    case Size::vocab_size:
      return config.vocab_size;
  }
  throw std::invalid_argument(cat("no such size: ", static_cast<int>(size)));
}

// A row that says two things at once is wrong for every Llama.
constexpr bool makes_sense(const PartFacts& row) {
  const bool one_row = row.rows == Size::one;
  const bool in_every_layer = row.scope != Scope::model;
  if (one_row != is_vector(row.kind)) return false;
  const bool optional = row.need == Need::optional || row.need == Need::sinks || row.need == Need::routed_bias;
  if (optional && !in_every_layer) return false;  // layer 0 tells whether the model has it
  const bool multiplies = row.kind == PartKind::matrix || row.kind == PartKind::experts || row.kind == PartKind::gain;
  return !row.lens.empty() && multiplies == !row.reads.empty();
}

constexpr bool all_make_sense() {
  for (const PartFacts& row : kParts) {
    if (!makes_sense(row)) return false;
  }
  return true;
}
static_assert(all_make_sense());

}  // namespace

MatrixShape part_shape(const Config& config, Part part) {
  return {value_of(facts(part).rows, config), value_of(facts(part).cols, config)};
}

const PartWords& words(Part part) { return kWords[static_cast<std::size_t>(part)]; }

std::string_view to_string(Naming naming) {
  switch (naming) {
    case Naming::meta:
      return "llama2.c";
    case Naming::hugging_face:
      return "hugging_face";
    case Naming::gguf:
      return "gguf";
  }
  throw std::invalid_argument(cat("no such naming: ", static_cast<int>(naming)));
}

}  // namespace llama2cpp
