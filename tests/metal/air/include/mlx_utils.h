// What MLX's utils.h gives to the kernels that third_party.py runs: it has much else, for complex numbers and bfloat.
#pragma once

#include "third_party.h"

using namespace metal;

struct complex64_t {
  float real, imag;
};

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float min = -INFINITY;
  static constexpr float finite_min = -FLT_MAX;
};
template <>
struct Limits<half> {
  static constexpr float finite_min = -65504.0f;
};

template <bool condition, class T, class U>
using ConditionalType = conditional<condition, T, U>;

inline int ceildiv(int n, int m) { return (n + m - 1) / m; }

// For what is compiled and never reached.
template <class Index = std::int64_t>
Index elem_to_loc(Index, const int*, const std::int64_t*, int) {
  __builtin_trap();
}
inline float quad_sum(float) { __builtin_trap(); }
