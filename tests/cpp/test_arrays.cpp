// Models of matrices in memory: which names are taken, and what becomes of a tied model's two matrices.
#include <doctest/doctest.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "io/arrays.h"
#include "tiny_model.h"

namespace {

using llama2cpp::Checkpoint;
using llama2cpp::checkpoint_of_arrays;
using llama2cpp::Config;
using llama2cpp::Naming;
using llama2cpp::Weight;

Config tied() {
  Config c = tiny::config();
  c.tied = true;
  return c;
}

Weight matrix(const std::string& name, float value) {
  const Config c = tiny::config();
  return tiny::weight(name, c.vocab_size, c.dim,
                      std::vector<float>(static_cast<std::size_t>(c.vocab_size * c.dim), value));
}

std::string error_of(const Config& config, std::vector<Weight> weights) {
  try {
    checkpoint_of_arrays(config, std::move(weights));
    return "";
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
}

}  // namespace

TEST_CASE("names of any one family are taken") {
  for (const Naming naming : {Naming::meta, Naming::hugging_face, Naming::gguf}) {
    const std::string name = llama2cpp::weight_name(naming, llama2cpp::Part::tok_embeddings);
    const Checkpoint found = checkpoint_of_arrays(tied(), {matrix(name, 1.0F)});
    CHECK(found.naming == naming);
    CHECK(found.file_format == "arrays");
    CHECK(found.weights.size() == 1);
    CHECK(found.weight(name).rows == tiny::config().vocab_size);
  }
}

TEST_CASE("names that have no place are refused") {
  const Weight embeddings = matrix("tok_embeddings.weight", 1.0F);
  CHECK(error_of(tied(), {embeddings, matrix("layers.2.attention.wq.weight", 1.0F)}).empty());
  CHECK(error_of(tied(), {embeddings, matrix("layers.3.attention.wq.weight", 1.0F)}) ==
        "'layers.3.attention.wq.weight' has no place in a Llama of 3 layers");
  CHECK(error_of(tied(), {embeddings, matrix("layers.0.attention.wx.weight", 1.0F)}) ==
        "'layers.0.attention.wx.weight' has no place in a Llama of 3 layers");
  CHECK(!error_of(tied(), {embeddings, matrix("blk.0.attn_q.weight", 1.0F)}).empty());
  CHECK(!error_of(tied(), {matrix("x", 1.0F)}).empty());
  CHECK(!error_of(tied(), {}).empty());
}

TEST_CASE("a tied model has one matrix, whichever name it comes by") {
  const std::string embeddings = "model.embed_tokens.weight";
  const std::string output = "lm_head.weight";
  const Weight norm = tiny::weight("model.norm.weight", 1, tiny::config().dim, std::vector<float>(36, 1.0F));
  for (const auto& names : {std::vector{embeddings}, std::vector{output}, std::vector{embeddings, output}}) {
    std::vector<Weight> weights = {norm};
    for (const std::string& name : names) weights.push_back(matrix(name, 0.5F));
    const Checkpoint found = checkpoint_of_arrays(tied(), weights);
    CHECK(found.weights.size() == 2);
    CHECK(found.weight(embeddings).name == embeddings);
  }
  CHECK(error_of(tied(), {matrix(embeddings, 0.5F), matrix(output, 0.25F)}) ==
        "config.tied is true, but 'lm_head.weight' differs from the embeddings");
  CHECK(error_of(tied(), {matrix(embeddings, 0.0F), matrix(output, -0.0F)}).ends_with("differs from the embeddings"));
  CHECK(error_of(tied(), {matrix(embeddings, 0.5F), tiny::weight(output, 1, 36, std::vector<float>(36, 0.5F))})
            .ends_with("differs from the embeddings"));
  CHECK(checkpoint_of_arrays(tiny::config(), {matrix(embeddings, 0.5F), matrix(output, 0.25F)}).weights.size() == 2);
}
