// Rotary angles: by how much each pair of a head is turned at a position (Su et al. 2021, RoFormer).
#pragma once

#include <vector>

#include "backend/backend.h"
#include "core/config.h"

namespace llama2cpp {

class RopeAngles {
 public:
  // is_long: of contexts beyond the original.
  explicit RopeAngles(const Config& config, Arithmetic arithmetic = Arithmetic::contract, bool is_long = false);

  // Of layers with a window, where they are turned otherwise.
  static RopeAngles local(const Config& config, Arithmetic arithmetic);

  // cos and sin [rotary / 2] of one position's angles.
  void at(std::int64_t position, float* cos, float* sin) const;

 private:
  Arithmetic arithmetic_;
  std::vector<float> inv_freq_;  // [rotary / 2] radians per position
  float length_;                 // what cos and sin are multiplied by
};

}  // namespace llama2cpp
