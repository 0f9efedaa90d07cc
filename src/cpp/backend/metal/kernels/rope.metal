// Rotary embedding: each pair of each head is turned by its position's angle.
#include <metal_stdlib>
#include "args.h"

using namespace metal;

constant uint kHalf [[function_constant(0)]];       // pairs of a head that are turned
constant uint kHalfSplit [[function_constant(1)]];  // pairs are (j, j + kHalf) of a head, not (2j, 2j + 1)
constant uint kHeadDim [[function_constant(2)]];

// Grid: x: pieces of kPairPiece pairs, y: rows.
kernel void rope(device float* x [[buffer(0)]], device const float* cos [[buffer(1)]],
                 device const float* sin [[buffer(2)]], constant RopeArgs& args [[buffer(3)]],
                 uint3 group [[threadgroup_position_in_grid]], uint3 threads [[threads_per_threadgroup]],
                 uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  const ulong row = group.y;
  const uint end = min(group.x * kPairPiece + kPairPiece, args.pairs);
  for (uint pair = group.x * kPairPiece + thread_in_group.x; pair < end; pair += threads.x) {
    const uint head = pair / kHalf;
    const uint j = pair % kHalf;
    const uint first = kHeadDim * head + (kHalfSplit != 0 ? j : 2 * j);
    device float* const a = x + row * args.x_stride + first;
    device float* const b = a + (kHalfSplit != 0 ? kHalf : 1);
    const float c = cos[row * args.cos_stride + j];
    const float s = sin[row * args.sin_stride + j];
    const float before = *a;
    *a = fma(before, c, -(*b * s));
    *b = fma(*b, c, before * s);
  }
}
