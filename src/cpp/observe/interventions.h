// Interventions: changes of activations that need no Python code, so that they cost what their arithmetic costs.
#pragma once

#include <cstdint>
#include <vector>

#include "observe/hooks.h"

namespace llama2cpp {

class Intervention final : public Hook {
 public:
  // On the addressed part of each row: what a head has for a token, or a token where there are no heads.
  enum class Change : std::uint8_t {
    set,          // x = v
    scale,        // x = x * v
    add,          // x = x + v
    project_out,  // c = sum of x * v in order, in double; x = x - c * v, rounded once
    mask,         // x = 0 in the addressed part, and the whole row divided by its sum: in order, in double. A sum of 0
                  // leaves zeros
  };

  // What is changed. Empty: all. What the activation of a call does not have is passed over.
  struct Address {
    std::vector<std::int64_t> heads;
    std::vector<std::int64_t> positions;  // from the sequence's beginning; negative: from the end of the call's tokens
    std::vector<std::int64_t> neurons;    // of the last axis; keys, for patterns
  };

  // [positions, heads, neurons], in the order of the address; an axis of 1 stands for all of it.
  struct Values {
    std::vector<double> numbers;  // floats, but for project_out
    std::int64_t positions = 1;
    std::int64_t heads = 1;
    std::int64_t neurons = 1;
  };

  // Throws std::invalid_argument for values whose shape is not the address's.
  Intervention(Change change, Address address, Values values);

  void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) override;
  bool replaces() const override {
    return change_ == Change::set && address_.heads.empty() && address_.positions.empty() && address_.neurons.empty();
  }

 private:
  void change(float* row, std::int64_t width, const double* values) const;
  void mask(float* row, std::int64_t width) const;

  Change change_;
  Address address_;
  Values values_;
};

}  // namespace llama2cpp
