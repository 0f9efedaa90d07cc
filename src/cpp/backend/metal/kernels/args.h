// What the host passes to kernels by value, as both sides see it: structs of 4-byte scalars only, so that no compiler can lay
// them out in another way. Strides are in elements, from one row to the next.
#pragma once

#ifndef __METAL_VERSION__
#include <cstdint>
namespace llama2cpp::metal {
using std::uint32_t;
#endif

// add, swiglu, add_bias: [rows, columns] each.
struct ElementwiseArgs {
  uint32_t rows, columns;
  uint32_t a_stride, b_stride, out_stride;
};
static_assert(sizeof(ElementwiseArgs) == 20, "both sides");

#ifndef __METAL_VERSION__
}  // namespace llama2cpp::metal
#endif
