// Takes a checkpoint's tensors to their places.
#include "model/weights.h"

#include <algorithm>

#include "core/check.h"

namespace llama2cpp {
namespace {

bool has(const Checkpoint& checkpoint, Part part, std::int64_t layer) {
  return checkpoint.weights.contains(weight_name(checkpoint.naming, part, layer));
}

// Whether a model has the part: as its config says; of an optional one, all layers have what layer 0 has. Throws for one that
// is there all the same.
bool is_taken(const Checkpoint& checkpoint, Part part, std::int64_t layer) {
  const std::optional<bool> needed = is_needed(checkpoint.config, part);
  if (needed.value_or(has(checkpoint, part, 0)) || facts(part).need == Need::untied) return true;
  if (!has(checkpoint, part, layer)) return false;
  const std::string problem = needed ? cat("config says otherwise (", words(part).need, ")") : "layer 0 has none";
  throw FormatError(cat("tensor '", weight_name(checkpoint.naming, part, layer), "' is there, but ", problem));
}

void take(const Checkpoint& checkpoint, Part part, std::int64_t layer, std::int64_t expert, Weight& field) {
  const bool shared = checkpoint.config.tied && facts(part).need == Need::untied;
  const Weight& weight = checkpoint.weight(shared ? Part::tok_embeddings : part, layer, expert);
  const auto [rows, cols] = part_shape(checkpoint.config, part);
  if (weight.rows != rows || weight.cols != cols) {
    throw FormatError(cat("tensor '", weight.name, "' is ", shape_text(weight), ", expected [", rows, ", ", cols, "]"));
  }
  field = weight;
}

void take(const Checkpoint& checkpoint, Backend& /*backend*/, Part part, std::int64_t layer, Weight& field) {
  // Of the two kinds of MLP a model has one.
  const bool other_mlp = checkpoint.config.n_experts > 0 ? of_dense_mlp(part) : of_experts(part);
  if (!other_mlp && is_taken(checkpoint, part, layer)) take(checkpoint, part, layer, 0, field);
}

void take(const Checkpoint& checkpoint, Backend& /*backend*/, Part part, std::int64_t layer,
          std::vector<Weight>& field) {
  field.resize(static_cast<std::size_t>(count_of(checkpoint.config, part)));
  for (std::size_t e = 0; e < field.size(); ++e) {
    take(checkpoint, part, layer, static_cast<std::int64_t>(e), field[e]);
  }
}

// Vectors are small and every row of every layer needs them: kept as floats whatever the file holds.
void take(const Checkpoint& checkpoint, Backend& backend, Part part, std::int64_t layer, Vector& field) {
  if (!is_taken(checkpoint, part, layer)) return;
  const std::int64_t count = count_of(checkpoint.config, part);
  const std::int64_t cols = part_shape(checkpoint.config, part).cols;
  for (std::int64_t e = 0; e < count; ++e) {
    Weight weight;
    take(checkpoint, part, layer, e, weight);  // of the shape that is expected: then there is memory for it
    if (e == 0) field = backend.make_vector(count * cols);
    weight.decode_row(0, field.view.row(0) + e * cols);
  }
  if (per_expert(facts(part).kind)) field.view = Tensor(field.view.row(0), {count, cols});
}

}  // namespace

Weights::Weights(const Checkpoint& checkpoint, Backend& backend) {
  const std::vector<Buffer> files = mapped_files(checkpoint);
  const FileReads reads(files);
  const auto taker = [&](std::int64_t layer) {
    return [&, layer](Part part, auto& field) { take(checkpoint, backend, part, layer, field); };
  };
  each(taker(0));
  layers.resize(static_cast<std::size_t>(checkpoint.config.n_layers));
  for (std::int64_t i = 0; i < checkpoint.config.n_layers; ++i) layers[static_cast<std::size_t>(i)].each(taker(i));
  reads.check();
}

std::vector<Weight*> Weights::matrices() {
  std::vector<Weight*> all;
  const auto add = [&](Part part, auto& field) {
    if constexpr (std::is_same_v<decltype(field), Weight&>) {
      if (facts(part).kind == PartKind::matrix && field.format != nullptr) all.push_back(&field);
    }
    if constexpr (std::is_same_v<decltype(field), std::vector<Weight>&>) {
      for (Weight& weight : field) all.push_back(&weight);
    }
  };
  for (LayerWeights& layer : layers) layer.each(add);
  each(add);
  return all;
}

}  // namespace llama2cpp
