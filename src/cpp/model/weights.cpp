// Takes a checkpoint's tensors to their places.
#include "model/weights.h"

#include "core/check.h"

namespace llama2cpp {
namespace {

Weight take(const Checkpoint& checkpoint, Part part, std::int64_t layer = 0) {
  const Weight& weight = checkpoint.weight(part, layer);
  const auto [rows, cols] = part_shape(checkpoint.config, part);
  if (weight.rows != rows || weight.cols != cols) {
    throw FormatError(cat("tensor '", weight.name, "' is ", shape_text(weight), ", expected [", rows, ", ", cols, "]"));
  }
  return weight;
}

// Gains are small and every row of every layer needs them: kept as floats whatever the file holds.
std::vector<float> take_gain(const Checkpoint& checkpoint, Part part, std::int64_t layer) {
  const Weight weight = take(checkpoint, part, layer);
  std::vector<float> gain(static_cast<std::size_t>(weight.cols));
  weight.decode_row(0, gain.data());
  return gain;
}

}  // namespace

Weights::Weights(const Checkpoint& checkpoint) {
  const Config& c = checkpoint.config;
  tok_embeddings = take(checkpoint, Part::tok_embeddings);
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    layers.push_back({
        .attention_norm = take_gain(checkpoint, Part::attention_norm, i),
        .wq = take(checkpoint, Part::wq, i),
        .wk = take(checkpoint, Part::wk, i),
        .wv = take(checkpoint, Part::wv, i),
        .wo = take(checkpoint, Part::wo, i),
        .ffn_norm = take_gain(checkpoint, Part::ffn_norm, i),
        .w1 = take(checkpoint, Part::w1, i),
        .w2 = take(checkpoint, Part::w2, i),
        .w3 = take(checkpoint, Part::w3, i),
    });
  }
  norm = take_gain(checkpoint, Part::norm, 0);
  output = c.tied ? tok_embeddings : take(checkpoint, Part::output);
}

std::vector<Weight*> Weights::matrices() {
  std::vector<Weight*> all;
  for (LayerWeights& l : layers) {
    for (Weight* weight : {&l.wq, &l.wk, &l.wv, &l.wo, &l.w1, &l.w3, &l.w2}) all.push_back(weight);
  }
  all.push_back(&output);
  return all;
}

}  // namespace llama2cpp
