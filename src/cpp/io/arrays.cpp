#include "io/arrays.h"

#include <cstring>
#include <string>
#include <utility>

#include "core/check.h"

namespace llama2cpp {
namespace {

bool equal_rows(const Weight& a, const Weight& b) {
  if (a.rows != b.rows || a.cols != b.cols) return false;
  std::vector<float> of_a(static_cast<std::size_t>(a.cols));
  std::vector<float> of_b(static_cast<std::size_t>(b.cols));
  for (std::int64_t row = 0; row < a.rows; ++row) {
    a.decode_row(row, of_a.data());
    b.decode_row(row, of_b.data());
    if (std::memcmp(of_a.data(), of_b.data(), of_a.size() * sizeof(float)) != 0) return false;
  }
  return true;
}

// A tied model has one matrix, under the embeddings' name.
void tie(Checkpoint& checkpoint) {
  const std::string embeddings = weight_name(checkpoint.naming, Part::tok_embeddings);
  const auto output = checkpoint.weights.find(weight_name(checkpoint.naming, Part::output));
  if (output == checkpoint.weights.end()) return;
  const auto found = checkpoint.weights.find(embeddings);
  if (found == checkpoint.weights.end()) {
    auto node = checkpoint.weights.extract(output);
    node.key() = embeddings;
    node.mapped().name = embeddings;
    checkpoint.weights.insert(std::move(node));
    return;
  }
  LLAMA2CPP_CHECK(equal_rows(found->second, output->second), "config.tied is true, but '", output->first,
                  "' differs from the embeddings");
  checkpoint.weights.erase(output);
}

}  // namespace

Checkpoint checkpoint_of_arrays(const Config& config, std::vector<Weight> weights) {
  Checkpoint checkpoint;
  checkpoint.file_format = "arrays";
  checkpoint.config = config;
  std::vector<std::string> names;
  for (const Weight& weight : weights) names.push_back(weight.name);
  checkpoint.naming = detect_naming(names);
  for (Weight& weight : weights) {
    // A name that no part has would be left out of the arithmetic without a word.
    LLAMA2CPP_CHECK(find_part(checkpoint.naming, weight.name, config), "'", weight.name,
                    "' has no place in a Llama of ", config.n_layers, " layers");
    std::string name = weight.name;
    checkpoint.weights.emplace(std::move(name), std::move(weight));
  }
  if (config.tied) tie(checkpoint);
  return checkpoint;
}

}  // namespace llama2cpp
