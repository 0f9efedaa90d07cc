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

// Vectors are small and every row of every layer needs them: kept as floats whatever the file holds.
std::vector<float> take_vector(const Checkpoint& checkpoint, Part part, std::int64_t layer) {
  const Weight weight = take(checkpoint, part, layer);
  std::vector<float> vector(static_cast<std::size_t>(weight.cols));
  weight.decode_row(0, vector.data());
  return vector;
}

bool has(const Checkpoint& checkpoint, Part part, std::int64_t layer) {
  return checkpoint.weights.contains(weight_name(checkpoint.naming, part, layer));
}

// A bias that layer 0 has, all have; one that it lacks, none has.
std::vector<float> take_bias(const Checkpoint& checkpoint, Part part, std::int64_t layer) {
  if (has(checkpoint, part, 0)) return take_vector(checkpoint, part, layer);
  if (has(checkpoint, part, layer)) {
    throw FormatError(cat("tensor '", weight_name(checkpoint.naming, part, layer), "' is there, but layer 0 has none"));
  }
  return {};
}

}  // namespace

Weights::Weights(const Checkpoint& checkpoint) {
  const std::vector<Buffer> files = mapped_files(checkpoint);
  const FileReads reads(files);
  const Config& c = checkpoint.config;
  tok_embeddings = take(checkpoint, Part::tok_embeddings);
  for (std::int64_t i = 0; i < c.n_layers; ++i) {
    layers.push_back({
        .attention_norm = take_vector(checkpoint, Part::attention_norm, i),
        .wq = take(checkpoint, Part::wq, i),
        .wk = take(checkpoint, Part::wk, i),
        .wv = take(checkpoint, Part::wv, i),
        .wo = take(checkpoint, Part::wo, i),
        .ffn_norm = take_vector(checkpoint, Part::ffn_norm, i),
        .w1 = take(checkpoint, Part::w1, i),
        .w2 = take(checkpoint, Part::w2, i),
        .w3 = take(checkpoint, Part::w3, i),
        .bq = take_bias(checkpoint, Part::bq, i),
        .bk = take_bias(checkpoint, Part::bk, i),
        .bv = take_bias(checkpoint, Part::bv, i),
        .bo = take_bias(checkpoint, Part::bo, i),
        .b1 = take_bias(checkpoint, Part::b1, i),
        .b2 = take_bias(checkpoint, Part::b2, i),
        .b3 = take_bias(checkpoint, Part::b3, i),
    });
  }
  norm = take_vector(checkpoint, Part::norm, 0);
  output = c.tied ? tok_embeddings : take(checkpoint, Part::output);
  reads.check();
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
