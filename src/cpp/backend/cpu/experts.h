// The calls of matmul that one op on experts becomes, and what they look into. A backend keeps it, so that ops allocate
// nothing unless a pass is the largest so far.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/cpu/matmul_call.h"
#include "core/buffer.h"

namespace llama2cpp {

// One expert's call among all.
struct ExpertCall {
  MatmulCall call;
  std::int64_t cost_before;  // of the calls before it, in the unit of cost_of_panel
  std::int64_t cost_of_panel;
  std::int64_t tiles_before;   // of inputs that workers share
  std::int64_t memory_before;  // bytes of those
};

struct ExpertCalls {
  std::vector<ExpertCall> calls;
  struct Sums {
    std::int64_t cost = 0;
    std::int64_t tiles = 0;
    std::int64_t input_bytes = 0;
    std::int64_t products = 0;      // panels times tokens
    std::int64_t worker_bytes = 0;  // the most of any call
  } all;
  std::vector<const Weight*> matrices;  // [calls][weights]

  void group(const KernelTable& kernels, std::span<const ExpertWeights> weights, const Tensor& x, const Tensor& experts,
             std::span<const Tensor> results, const Norm& norm);

 private:
  void add(const MatmulCall& call);

  std::vector<Tensor> outs;          // [calls][weights]
  std::vector<std::int32_t> places;  // [T * k] by expert
  std::vector<std::size_t> begins;   // [E + 1] where each expert's places begin
  std::vector<std::size_t> next;     // [E]
  Buffer sums;                       // what outs are where an expert has several places
};

}  // namespace llama2cpp
