// The products of a layer's matrices in a pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "model/low_rank.h"

namespace llama2cpp {

// out = weight . x + bias, and what adapters have beside the weight
struct Product {
  Part part;
  const Weight& weight;
  const Vector& bias;
  const Tensor& out;
};

class Products {
 public:
  Products(const Model& model, std::span<const SequenceInput> sequences)
      : be_(model.backend()), adapters_(model, sequences) {}

  // Of one x, norm and all [T, columns] -> [T, rows] each, in one op. Adapters come before the bias, as in the model that
  // they were trained beside.
  template <std::size_t kCount>
  void operator()(const Input& input, const Product (&products)[kCount], std::int64_t layer) {
    const Weight* weights[kCount];
    Tensor outs[kCount];
    AdaptedOutput adapted[kCount];
    for (std::size_t p = 0; p < kCount; ++p) {
      weights[p] = &products[p].weight;
      outs[p] = products[p].out;
      adapted[p] = {products[p].part, products[p].out};
    }
    be_.matmul(weights, input.x, outs, input.norm);
    adapters_.add(input, adapted, layer);
    for (const Product& product : products) {
      if (product.bias) be_.add_bias(product.out, product.bias.view);
    }
  }

 private:
  Backend& be_;
  LowRankProducts adapters_;
};

}  // namespace llama2cpp
