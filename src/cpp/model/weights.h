// The weights of a Llama by their part in it, checked against the config.
#pragma once

#include <vector>

#include "core/config.h"
#include "format/format.h"
#include "io/checkpoint.h"

namespace llama2cpp {

struct LayerWeights {
  std::vector<float> attention_norm;  // [dim]
  Weight wq;                          // [n_heads * head_dim, dim]
  Weight wk;                          // [n_kv_heads * head_dim, dim]
  Weight wv;                          // [n_kv_heads * head_dim, dim]
  Weight wo;                          // [dim, n_heads * head_dim]
  std::vector<float> ffn_norm;        // [dim]
  Weight w1;                          // [hidden_dim, dim]   gate
  Weight w2;                          // [dim, hidden_dim]   down
  Weight w3;                          // [hidden_dim, dim]   up

  // Added to what the matrix of the same letter gives; empty where the model has none.
  std::vector<float> bq, bk, bv, bo, b1, b2, b3;
};

struct Weights {
  Weight tok_embeddings;  // [vocab_size, dim], read by rows
  std::vector<LayerWeights> layers;
  std::vector<float> norm;  // [dim]
  Weight output;            // [vocab_size, dim]; the same file bytes as tok_embeddings where tied

  // Throws FormatError for a missing tensor, a shape that the config does not give, and a bias that only some layers have.
  explicit Weights(const Checkpoint& checkpoint);

  // Every matrix that matmul reads, in the order of the forward.
  std::vector<Weight*> matrices();
};

}  // namespace llama2cpp
