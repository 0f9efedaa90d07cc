// The weights of a Llama by their part in it, checked against the config.
#pragma once

#include <type_traits>
#include <vector>

#include "backend/backend.h"
#include "core/parts.h"
#include "format/format.h"
#include "io/checkpoint.h"

namespace llama2cpp {

// Gains, biases and sinks as floats in memory of the backend's, empty where a model lacks an optional one, those of all experts
// as one table [n_experts, n]; all else as it lies in
// the file: a list of weights, one for each expert, or one weight. Those are empty where the model has MLPs of the other kind.
template <PartKind kKind>
using PartValue = std::conditional_t<is_vector(kKind), Vector,
                                     std::conditional_t<kKind == PartKind::experts, std::vector<Weight>, Weight>>;

// A layer's weights: a field for each row of a layer in core/parts.inc, by its name.
struct LayerWeights {
#define LAYER_PART(half, kind, part, ...) PartValue<PartKind::kind> part;
#define EXPERT_PART(kind, part, ...) PartValue<PartKind::kind> part;
#include "core/parts.inc"

  // visit(part, field) for all of them.
  template <class Visit>
  void each(Visit visit) {
#define LAYER_PART(half, kind, part, ...) visit(Part::part, part);
#define EXPERT_PART(kind, part, ...) visit(Part::part, part);
#include "core/parts.inc"
  }
};

// A model's: those that no layer has, and the layers. A tied output is the same file bytes as tok_embeddings.
struct Weights {
#define MODEL_PART(kind, part, ...) PartValue<PartKind::kind> part;
#include "core/parts.inc"
  std::vector<LayerWeights> layers;

  // Throws FormatError for a missing tensor, a shape that the config does not give, and an optional part that only some
  // layers have.
  Weights(const Checkpoint& checkpoint, Backend& backend);

  // Every matrix that matmul reads.
  std::vector<Weight*> matrices();

 private:
  // visit(part, field) for those that no layer has.
  template <class Visit>
  void each(Visit visit) {
#define MODEL_PART(kind, part, ...) visit(Part::part, part);
#include "core/parts.inc"
  }
};

}  // namespace llama2cpp
