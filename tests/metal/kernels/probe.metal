// What the shim's own tests run. No part of the program.
#include <metal_stdlib>
#include "probe_part.h"

using namespace metal;

constant uint kFactor [[function_constant(3)]];
constant uint kOffset [[function_constant(1)]];

// out[i] = x[i] * kFactor + kOffset, and 100 * i where nothing else is. Grid: x.
kernel void scale(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                  constant ProbeArgs& args [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  if (i < args.n) out[i] = x[i] * float(kFactor) + float(kOffset);
}

// Each thread's ids, 16 numbers for each.
kernel void ids(device uint* out [[buffer(0)]], uint3 position [[thread_position_in_grid]],
                uint3 group [[threadgroup_position_in_grid]], uint3 thread_position [[thread_position_in_threadgroup]],
                uint3 groups [[threadgroups_per_grid]], uint3 threads [[threads_per_threadgroup]],
                uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                uint simdgroup [[simdgroup_index_in_threadgroup]], uint simdgroups [[simdgroups_per_threadgroup]]) {
  const uint3 size = groups * threads;
  device uint* const mine = out + ulong((position.z * size.y + position.y) * size.x + position.x) * 16;
  for (uint k = 0; k < 3; ++k) {
    mine[k] = group[k];
    mine[3 + k] = thread_position[k];
    mine[6 + k] = groups[k];
    mine[9 + k] = threads[k];
  }
  mine[12] = index;
  mine[13] = lane;
  mine[14] = simdgroup;
  mine[15] = simdgroups;
}

// out[group] = sum of the group's part of x, by way of threadgroup memory. `whole`: with its barrier.
static inline void sum_of_group(device const float* x, device float* out, threadgroup float* shared, bool whole,
                                uint group, uint index, uint threads) {
  shared[index] = x[ulong(group) * threads + index];
  if (whole) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (index == 0) {
    float sum = 0.0f;
    for (uint i = 0; i < threads; ++i) sum += shared[i];
    out[group] = sum;
  }
}

kernel void group_sum(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                      threadgroup float* shared [[threadgroup(0)]], uint group [[threadgroup_position_in_grid]],
                      uint index [[thread_index_in_threadgroup]], uint threads [[threads_per_threadgroup]]) {
  sum_of_group(x, out, shared, true, group, index, threads);
}

kernel void group_sum_without_barrier(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                                      threadgroup float* shared [[threadgroup(0)]],
                                      uint group [[threadgroup_position_in_grid]],
                                      uint index [[thread_index_in_threadgroup]],
                                      uint threads [[threads_per_threadgroup]]) {
  sum_of_group(x, out, shared, false, group, index, threads);
}
