// What adapters add to a pass: each sequence may have another one, or none.
#pragma once

#include <span>
#include <vector>

#include "model/adapter.h"
#include "model/norms.h"

namespace llama2cpp {

struct SequenceInput;

// A matrix's output [T, rows], to which its adapters' products are added.
struct AdaptedOutput {
  Part part;
  Tensor out;
};

class LowRankProducts {
 public:
  LowRankProducts(const Model& model, std::span<const SequenceInput> sequences);

  // out[t] = out[t] + B . (scale * (A . norm(x[t]))), in f32, for the rows of each sequence whose adapter has factors of the
  // part in this layer. Outputs of one call read the same x. A and B are matmul's weights, so the order of every sum is
  // matmul's, whatever else is in the pass.
  void add(const Input& input, std::span<const AdaptedOutput> outputs, std::int64_t layer);

 private:
  // Rows that follow each other and have one adapter.
  struct Rows {
    const Adapter* adapter;
    std::int64_t first, count;
  };

  Backend& be_;
  std::vector<Rows> rows_;
  Buffer memory_;            // of what follows; the model's to use again
  float* low_ = nullptr;     // [rows, up to kMostTogether * rank]
  float* change_ = nullptr;  // [rows, widest output]
};

}  // namespace llama2cpp
