// Kernels for the software device's own tests: each does one thing wrong where it is told to. No part of the program.
#include <metal_stdlib>
#include "faults_args.h"

using namespace metal;

constant uint kMode [[function_constant(0)]];
constant uint kNever [[function_constant(7)]];

// out[i] = 2 x[i]; reads args.read elements further on, and writes args.write further on.
kernel void twice(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                  constant FaultArgs& args [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  if (i < args.n) out[int(i) + args.write] = 2.0f * x[int(i) + args.read];
}

// x[i] = 2 x[i], with one pointer.
kernel void twice_in_place(device float* x [[buffer(0)]], constant FaultArgs& args [[buffer(1)]],
                           uint i [[thread_position_in_grid]]) {
  if (i < args.n) x[i] = 2.0f * x[i];
}

// Four at a time, from element args.read on.
kernel void twice4(device const float* x [[buffer(0)]], device float4* out [[buffer(1)]],
                   constant FaultArgs& args [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  if (i < args.n / 4) out[i] = 2.0f * ((device const float4*)(x + args.read))[i];
}

// Copies blocks of 6 bytes, which are aligned to 2.
kernel void copy_blocks(device const FaultBlock* x [[buffer(0)]], device FaultBlock* out [[buffer(1)]],
                        constant FaultArgs& args [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  if (i < args.n) out[i] = x[int(i) + args.read];
}

// Neighbours write to the two halves of four bytes, or to four quarters: no race.
kernel void narrow(device const float* x [[buffer(0)]], device half* out [[buffer(1)]], device uchar* bytes [[buffer(2)]],
                   uint i [[thread_position_in_grid]]) {
  out[i] = half(x[i]);
  bytes[i] = uchar(i);
}

// shared[i] = x[i], then out[i] = shared of the neighbour; kMode says what is between.
kernel void neighbour(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                      constant FaultArgs& args [[buffer(2)]], threadgroup float* shared [[threadgroup(0)]],
                      uint i [[thread_index_in_threadgroup]], uint n [[threads_per_threadgroup]],
                      uint group [[threadgroup_position_in_grid]]) {
  shared[i] = x[group * n + i];
  if (kMode == 1) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (kMode == 2) simdgroup_barrier(mem_flags::mem_threadgroup);
  if (kMode == 3) threadgroup_barrier(mem_flags::mem_none);
  if (kMode == 4) threadgroup_barrier(mem_flags::mem_device);
  const float sum = kMode == 5 ? simd_sum(x[i]) : 0.0f;
  out[group * n + i] = shared[uint(int(i) + args.read + int(n)) % n] + 0.0f * sum;
}

// The same through device memory.
kernel void neighbour_device(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                             device float* between [[buffer(2)]], constant FaultArgs& args [[buffer(3)]],
                             uint i [[thread_index_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
  between[i] = x[i];
  if (kMode == 1) threadgroup_barrier(mem_flags::mem_device);
  if (kMode == 2) simdgroup_barrier(mem_flags::mem_device);
  if (kMode == 4) threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = between[uint(int(i) + args.read + int(n)) % n];
}

// All threads read, and one writes afterwards: to what the others of its simdgroup (or of all) have read.
kernel void read_then_write(device float* out [[buffer(0)]], threadgroup float* shared [[threadgroup(0)]],
                            uint i [[thread_index_in_threadgroup]]) {
  if (i < 2) shared[i] = 1.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float value = shared[i / 32];
  if (kMode == 1) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (kMode == 2) simdgroup_barrier(mem_flags::mem_threadgroup);
  if (i % 32 == 5) shared[i / 32] = 2.0f;
  out[i] = value;
}

// Each threadgroup writes to the same element, or reads what the one before wrote.
kernel void groups_meet(device float* out [[buffer(0)]], uint group [[threadgroup_position_in_grid]],
                        uint i [[thread_index_in_threadgroup]]) {
  if (kMode == 0 && i == 0) out[0] = float(group);
  if (kMode == 1 && i == 0) out[group] = group > 0 ? out[group - 1] : 1.0f;
  if (kMode == 2 && i == 0) out[group] = 1.0f;
  if (kMode == 3 && i == 0) out[group] = out[group + 1];
}

// The order in which threads happen to run: a race, so only for when nobody looks.
kernel void order(device uint* out [[buffer(0)]], uint i [[thread_position_in_grid]]) { out[1 + out[0]++] = i; }

// Threadgroup memory that nobody wrote to.
kernel void unwritten(device float* out [[buffer(0)]], threadgroup float* shared [[threadgroup(0)]],
                      uint i [[thread_position_in_grid]]) {
  out[i] = shared[i % 4];
  shared[i % 4] = 1.0f;
}

kernel void barrier_for_some(device float* out [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  if (i < 3 || kMode == 1) threadgroup_barrier(mem_flags::mem_none);
  out[i] = 1.0f;
}

kernel void reads_never(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  if (kMode == 1) out[i] = float(kNever);
}

kernel void multiply_add(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                         device float* out [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  out[i] = a[i] * b[i] - 1.0f;
}

static float pick(thread const float* values, uint i) { return values[i]; }

// A variable of the thread that has an address.
kernel void own_array(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                      constant FaultArgs& args [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  float mine[16];
  for (uint k = 0; k < 16; ++k) mine[k] = x[k];
  for (uint k = 0; k < args.n; ++k) mine[(k * 7) % 16] += float(k);
  out[i] = pick(mine, (i * 5) % 16);
}

// rows x columns, one row a thread: for the cost of looking.
kernel void row_sums(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                     constant FaultArgs& args [[buffer(2)]], uint row [[thread_position_in_grid]]) {
  float sum = 0.0f;
  for (uint k = 0; k < args.n; ++k) sum += x[ulong(row) * args.n + k];
  out[row] = sum;
}
