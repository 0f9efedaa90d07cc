// RMSNorm in two halves: the divisor of each row, and the product with its inverse and a gain. And what LayerNorm does
// before them: each row less its mean.
#include <metal_stdlib>
#include "args.h"

using namespace metal;

constant uint kScaled [[function_constant(0)]];  // rms_normalize divides by scale
constant uint kGained [[function_constant(1)]];  // and multiplies by gain

// scale[row] = sqrt(mean(x[row]^2) + eps). A group for each row; `sums` has a float for each of its simdgroups.
kernel void rms_scale(device const float* x [[buffer(0)]], device float* scale [[buffer(1)]],
                      constant NormArgs& args [[buffer(2)]], threadgroup float* sums [[threadgroup(0)]],
                      uint3 group [[threadgroup_position_in_grid]], uint3 threads [[threads_per_threadgroup]],
                      uint thread_in_group [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint simdgroups [[simdgroups_per_threadgroup]]) {
  const ulong row = group.x;
  device const float* const values = x + row * args.x_stride;
  float sum = 0.0f;
  for (uint c = thread_in_group; c < args.columns; c += threads.x) sum = fma(values[c], values[c], sum);
  sum = simd_sum(sum);
  if (lane == 0) sums[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (thread_in_group == 0) {
    float all = sums[0];
    for (uint i = 1; i < simdgroups; ++i) all += sums[i];
    scale[row * args.scale_stride] = precise::sqrt(all / float(args.columns) + args.eps);
  }
}

// out[row] = x[row] - mean(x[row]). The same group.
kernel void center(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                   constant NormArgs& args [[buffer(2)]], threadgroup float* sums [[threadgroup(0)]],
                   uint3 group [[threadgroup_position_in_grid]], uint3 threads [[threads_per_threadgroup]],
                   uint thread_in_group [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]]) {
  const ulong row = group.x;
  device const float* const values = x + row * args.x_stride;
  float sum = 0.0f;
  for (uint c = thread_in_group; c < args.columns; c += threads.x) sum += values[c];
  sum = simd_sum(sum);
  if (lane == 0) sums[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float all = sums[0];
  for (uint i = 1; i < simdgroups; ++i) all += sums[i];
  const float mean = all / float(args.columns);
  for (uint c = thread_in_group; c < args.columns; c += threads.x) out[row * args.out_stride + c] = values[c] - mean;
}

// (value * (1 / scale)) * gain, where there are such
static inline float normalized(float value, float scale, float gain) {
  if (kScaled != 0) value *= 1.0f / scale;
  if (kGained != 0) value *= gain;
  return value;
}

// Grid: x: pieces of kColumnPiece columns, y: rows. Of scale and gain, what there is not is the other.
kernel void rms_normalize(device const float* x [[buffer(0)]], device const float* scale [[buffer(1)]],
                          device const float* gain [[buffer(2)]], device float* out [[buffer(3)]],
                          constant NormArgs& args [[buffer(4)]], uint3 group [[threadgroup_position_in_grid]],
                          uint3 threads [[threads_per_threadgroup]],
                          uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  const ulong row = group.y;
  const float divisor = kScaled != 0 ? scale[row * args.scale_stride] : 1.0f;
  const uint end = min(group.x * kColumnPiece + kColumnPiece, args.columns);
  for (uint c = group.x * kColumnPiece + thread_in_group.x; c < end; c += threads.x) {
    const float factor = kGained != 0 ? gain[c] : 1.0f;
    out[row * args.out_stride + c] = normalized(x[row * args.x_stride + c], divisor, factor);
  }
}

kernel void rms_normalize_in_place(device float* x [[buffer(0)]], device const float* scale [[buffer(1)]],
                                   device const float* gain [[buffer(2)]], constant NormArgs& args [[buffer(3)]],
                                   uint3 group [[threadgroup_position_in_grid]],
                                   uint3 threads [[threads_per_threadgroup]],
                                   uint3 thread_in_group [[thread_position_in_threadgroup]]) {
  const ulong row = group.y;
  const float divisor = kScaled != 0 ? scale[row * args.scale_stride] : 1.0f;
  const uint end = min(group.x * kColumnPiece + kColumnPiece, args.columns);
  for (uint c = group.x * kColumnPiece + thread_in_group.x; c < end; c += threads.x) {
    const float factor = kGained != 0 ? gain[c] : 1.0f;
    const ulong at = row * args.x_stride + c;
    x[at] = normalized(x[at], divisor, factor);
  }
}
