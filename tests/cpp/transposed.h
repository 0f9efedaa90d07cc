// The transposed product of one weight, by an op and by plain loops over the numbers that its format decodes.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/gradient_ops.h"
#include "kernel_inputs.h"

namespace transposed {

using kernel_outputs::Bits;
using llama2cpp::Tensor;
using llama2cpp::Weight;

// The sums of some weights after each other: fma over blocks of 256 rows in order, and the blocks' sums added in order.
inline Bits by_loops(const std::vector<Weight>& weights, const std::vector<std::vector<float>>& dys,
                     std::int64_t tokens) {
  const std::int64_t cols = weights[0].cols;
  std::vector<float> out(static_cast<std::size_t>(tokens * cols), 0.0F);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const std::int64_t rows = weights[i].rows;
    std::vector<float> w(static_cast<std::size_t>(rows * cols));
    for (std::int64_t n = 0; n < rows; ++n) weights[i].decode_row(n, w.data() + n * cols);
    for (std::int64_t t = 0; t < tokens; ++t) {
      for (std::int64_t k = 0; k < cols; ++k) {
        float& sum = out[static_cast<std::size_t>(t * cols + k)];
        for (std::int64_t begin = 0; begin < rows; begin += 256) {
          float part = 0.0F;
          for (std::int64_t n = begin; n < std::min(begin + 256, rows); ++n) {
            part = std::fma(w[static_cast<std::size_t>(n * cols + k)], dys[i][static_cast<std::size_t>(t * rows + n)],
                            part);
          }
          sum = sum + part;
        }
      }
    }
  }
  Bits bits;
  bits.add(out);
  return bits;
}

inline Bits by_op(llama2cpp::Backend& backend, const std::vector<Weight>& weights, std::vector<std::vector<float>>& dys,
                  std::int64_t tokens) {
  std::vector<float> memory(static_cast<std::size_t>(tokens * weights[0].cols + 1), kernel_outputs::kGuard);
  std::vector<const Weight*> pointers;
  std::vector<Tensor> inputs;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    pointers.push_back(&weights[i]);
    inputs.emplace_back(dys[i].data(), std::initializer_list<std::int64_t>{tokens, weights[i].rows});
  }
  const llama2cpp::Backend::Lease lease(backend, llama2cpp::kNoPoll);
  backend.gradient_ops()->matmul_transposed(pointers, inputs, Tensor(memory.data(), {tokens, weights[0].cols}));
  CHECK(memory.back() == kernel_outputs::kGuard);
  memory.pop_back();
  Bits bits;
  bits.add(memory);
  return bits;
}

// One weight, which an op finds packed or not.
template <class Backends>
void check(const Backends& all, Weight w, std::int64_t tokens, std::uint64_t seed) {
  w.panels = {};
  std::vector<std::vector<float>> dys = {
      kernel_outputs::make(static_cast<std::size_t>(tokens * w.rows), kernel_outputs::Kind::ordinary, seed)};
  const Bits wanted = by_loops({w}, dys, tokens);
  for (const auto& backend : all) {
    CAPTURE(w.format->name);
    CAPTURE(backend->isa());
    CAPTURE(tokens);
    CAPTURE(w.int8_input);
    w.panels = {};
    CHECK((by_op(*backend, {w}, dys, tokens) == wanted));
    backend->pack(w);
    CHECK((by_op(*backend, {w}, dys, tokens) == wanted));
  }
}

}  // namespace transposed
