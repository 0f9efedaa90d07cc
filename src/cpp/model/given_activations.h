// What hooks of a run had made of activations, for its layers when they are run again.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "observe/hooks.h"

namespace llama2cpp {

// One place's activation of all sequences, [sequences, tokens, ...], or [sequences, heads, tokens, tokens] of patterns.
struct GivenActivation {
  Place place;
  const float* values;
};

class GivenActivations {
 public:
  // Of sequences of `tokens` each. The values must live as long as this and its hooks.
  GivenActivations(const Config& config, std::int64_t tokens, std::span<const GivenActivation> given);

  bool has(Point point, std::int64_t layer) const { return find(point, layer) != nullptr; }
  // As hooks see it: [T, ...] or [heads, T, T]; empty where nothing is given.
  Tensor at(Point point, std::int64_t layer, std::size_t sequence) const;
  // Whether a norm's scale or output within a layer is among them.
  bool any_norms() const { return any_norms_; }

  // Adds what puts them in their places, before all hooks that are added later.
  void add_to(Hooks& hooks) const;

 private:
  class Put;

  const float* find(Point point, std::int64_t layer) const {
    return values_[static_cast<std::size_t>(layer * kPoints) + static_cast<std::size_t>(point)];
  }

  const Config& config_;
  std::int64_t tokens_;
  std::vector<const float*> values_;  // [n_layers, kPoints]; null: not given
  bool any_ = false;
  bool any_norms_ = false;
};

}  // namespace llama2cpp
