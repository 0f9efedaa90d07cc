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

// ---- Types

static_assert(is_same_v<decltype(half(1.0f) * half(1.0f)), half>, "half and half is half");
static_assert(is_same_v<decltype(half(1.0f) * 2), half>, "half and int is half");
static_assert(is_same_v<decltype(half(1.0f) + 2.0f), float>, "half and float is float");
static_assert(is_same_v<decltype(uchar(1) + uchar(1)), int>, "as in C");
static_assert(is_same_v<char4, vec<char, 4>>, "char is Metal's signed byte");
static_assert(uint(mem_flags::mem_device | mem_flags::mem_threadgroup) == 3u, "both");
static_assert(float(numeric_limits<half>::max()) == 65504.0f, "not 0");
static_assert(numeric_limits<float>::max() == FLT_MAX, "as in C");
static_assert(sizeof(float3) == 16 && alignof(float3) == 16, "as float4");
static_assert(sizeof(float4) == 16 && alignof(float4) == 16, "of its size");
static_assert(sizeof(half4) == 8 && alignof(half4) == 8 && sizeof(uchar4) == 4 && alignof(uchar4) == 4, "of its size");
static_assert(sizeof(packed_float3) == 12 && alignof(packed_float3) == 4, "no padding");
static_assert(sizeof(packed_half4) == 8 && alignof(packed_half4) == 2, "no alignment but an element's");

// out: one number for each line of test_shim.cpp's table.
kernel void vectors(device const float4* x [[buffer(0)]], device float* out [[buffer(1)]]) {
  const float4 a = x[0];
  float4 b = x[1];
  uint n = 0;
  const float4 sums = a + b * 2.0f - 1.0f / a;
  for (uint i = 0; i < 4; ++i) out[n++] = sums[i];
  b.x += 10.0f;
  b.zw = a.xy;
  b[1] = 7.0f;
  for (uint i = 0; i < 4; ++i) out[n++] = b[i];
  const float4 made = float4(a.xy, b.zw);
  out[n++] = made.x + made.y * 10.0f + made.z * 100.0f + made.w * 1000.0f;
  out[n++] = dot(a, b);
  const float3 three = float3(a.w, a.yz);
  out[n++] = three.x - three.y - three.z;
  const uint4 bits = (uint4(1u, 2u, 4u, 255u) << 1u) & 0xfeu;
  for (uint i = 0; i < 4; ++i) out[n++] = float(bits[i]);
  const float4 from_half = float4(half4(a * 0.1f));
  for (uint i = 0; i < 4; ++i) out[n++] = from_half[i];
  const int4 cut = int4(float4(1.9f, -1.9f, 0.5f, 100.0f));
  for (uint i = 0; i < 4; ++i) out[n++] = float(cut[i]);
  const float4 larger = max(a, float4(2.5f));
  for (uint i = 0; i < 4; ++i) out[n++] = larger[i];
  const float4 fused = fma(a, b, float4(1.0f));
  for (uint i = 0; i < 4; ++i) out[n++] = fused[i];
  out[n++] = any(a < float4(0.0f)) ? 1.0f : 0.0f;
  out[n++] = all(a >= float4(1.0f)) ? 1.0f : 0.0f;
  const float4 chosen = select(a, b, a > float4(2.5f));
  for (uint i = 0; i < 4; ++i) out[n++] = chosen[i];
  const packed_float3 packed[2] = {packed_float3(a.xyz), packed_float3(b.xyz)};
  const float3 second = packed[1];
  out[n++] = second.z + packed[0][2];
}

kernel void bits_of(device const uint* x [[buffer(0)]], device float* out [[buffer(1)]]) {
  out[0] = as_type<float>(x[0]);
  out[1] = float(as_type<half>(ushort(x[1])));
  const char4 bytes = as_type<char4>(x[2]);
  for (uint i = 0; i < 4; ++i) out[2 + i] = float(bytes[i]);
  out[6] = float(as_type<half2>(x[3]).y);
  out[7] = as_type<float>(x[4] << 16);
  out[8] = float(as_type<uint>(2.0f));
}

// Each operation of halves is rounded to half.
kernel void halves(device const half* x [[buffer(0)]], device half* out [[buffer(1)]], device float* wide [[buffer(2)]]) {
  out[0] = x[0] + x[1];
  out[1] = x[0] + x[1] + x[1];
  out[2] = x[2] * x[2] * 2;
  out[3] = half(float(x[0]) + float(x[1]) + float(x[1]));
  wide[0] = x[0] + x[1];
  wide[1] = x[0] + float(x[1]);
}

kernel void math(device const float* x [[buffer(0)]], device float* out [[buffer(1)]]) {
  out[0] = precise::exp(x[0]);
  out[1] = rsqrt(x[1]);
  out[2] = max(NAN, x[0]);
  out[3] = min(x[0], NAN);
  out[4] = clamp(x[0], -1.0f, 1.0f);
  out[5] = float(abs(int(x[2]))) + fabs(x[2]);
  out[6] = float(max(3u, 4u)) + float(min(-3, 4));
  out[7] = precise::exp(-INFINITY);
  out[8] = floor(x[2]) + ceil(x[2]) * 10.0f + trunc(x[2]) * 100.0f + rint(x[0]) * 1000.0f;
  out[9] = isnan(x[0]) || isinf(x[0]) ? 1.0f : 0.0f;
}

// One rounding or two: the two ways in which a library is compiled. out[1] is always one.
kernel void contraction(device const float* x [[buffer(0)]], device float* out [[buffer(1)]]) {
  out[0] = x[0] * x[1] + x[2];
  out[1] = fma(x[0], x[1], x[2]);
}

// What a thread has not set is no number.
kernel void unset(device float* out [[buffer(0)]], constant ProbeArgs& args [[buffer(1)]]) {
  float values[4];
  for (uint i = 0; i < args.n; ++i) values[i] = 1.0f;
  for (uint i = 0; i < 4; ++i) out[i] = values[i];
}

// ---- Simdgroups. out: [16][threads].

kernel void simdgroups(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                       uint i [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
                       uint threads [[threads_per_threadgroup]]) {
  device float* const mine = out + i;
  mine[0 * threads] = simd_sum(x[i]);
  mine[1 * threads] = simd_max(x[i]);
  mine[2 * threads] = simd_min(x[i]);
  mine[3 * threads] = simd_shuffle(x[i], ushort(3));
  mine[4 * threads] = simd_shuffle_xor(x[i], ushort(1));
  mine[5 * threads] = simd_shuffle_down(x[i], ushort(0));
  mine[6 * threads] = simd_broadcast_first(x[i]);
  mine[7 * threads] = simd_any(x[i] > 60.0f) ? 1.0f : 0.0f;
  mine[8 * threads] = simd_all(x[i] > 60.0f) ? 1.0f : 0.0f;
  mine[9 * threads] = float(simd_sum(uint(lane)));
  const float4 four = simd_sum(float4(x[i], 1.0f, 2.0f * x[i], 0.0f));
  mine[10 * threads] = four.y + four.z;
  mine[11 * threads] = float(simd_max(int(lane) - 40));
}

kernel void shuffles(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                     constant ProbeArgs& args [[buffer(2)]], uint i [[thread_index_in_threadgroup]]) {
  out[i] = simd_shuffle_down(x[i], ushort(args.n));
  out[32 + i] = simd_shuffle_up(x[i], ushort(args.n));
  out[64 + i] = simd_shuffle(x[i], ushort(args.n));
}

// d = a b + c of 8 x 8; b is read transposed, from a place within a matrix of 24 columns. One simdgroup.
kernel void matrices(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                     device const float* c [[buffer(2)]], device float* d [[buffer(3)]],
                     threadgroup float* shared [[threadgroup(0)]], uint lane [[thread_index_in_simdgroup]]) {
  for (uint i = lane; i < 64; i += 32) shared[i] = a[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 left;
  simdgroup_float8x8 right;
  simdgroup_float8x8 sum;
  simdgroup_load(left, shared);
  simdgroup_load(right, b, 24, ulong2(5, 3), true);
  simdgroup_load(sum, c, 8);
  simdgroup_multiply_accumulate(sum, left, right, sum);
  simdgroup_store(sum, d, 8);
  simdgroup_multiply(sum, left, simdgroup_float8x8(2.0f));
  simdgroup_store(sum, d + 64, 16, ulong2(8, 0), true);  // [8][16], the right half
  simdgroup_float8x8 same = make_filled_simdgroup_matrix<float, 8, 8>(2.0f);
  for (uint i = 0; i < 2; ++i) same.thread_elements()[i] += 1.0f;
  simdgroup_store(same, d + 64, 16);
}

// ---- What a GPU does not forgive

kernel void barrier_for_some(uint i [[thread_index_in_threadgroup]]) {
  if (i >= 8) threadgroup_barrier(mem_flags::mem_threadgroup);
}

kernel void two_barriers(uint i [[thread_index_in_threadgroup]]) {
  if (i < 40) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

kernel void sum_for_some(device float* out [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  if (i % 2 == 0) {
    out[i] = simd_sum(1.0f);
  } else {
    out[i] = simd_max(1.0f);
  }
}

kernel void sum_after_return(device float* out [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  if (i == 5) return;
  out[i] = simd_sum(1.0f);
}

// ---- Accesses

struct Block {
  half scale;
  uchar codes[34];
};

kernel void accesses(device const uchar* bytes [[buffer(0)]], device float4* fours [[buffer(1)]],
                     device Block* blocks [[buffer(2)]], constant ProbeArgs& args [[buffer(3)]]) {
  fours[1] = *(device const float4*)(bytes + args.n);
  const uint pair = bytes[1] | bytes[2] << 8;
  fours[2].x = float(pair);
  blocks[1] = blocks[0];
  for (uint i = 0; i < 16; ++i) blocks[2].codes[i] = 0;
}
