// Ops that take each number by itself. Apple's compiler counts on it that arguments do not overlap, so each op that may write
// over an input has a kernel in which that is one argument.
//
// Grid: x: pieces of kColumnPiece columns, y: rows.
#include <metal_stdlib>
#include "args.h"

using namespace metal;

// The columns of this thread: from `column` on, in steps of the group's threads.
#define EACH_COLUMN(column)                                                   \
  for (uint column = group.x * kColumnPiece + thread_in_group.x,              \
            end = min(group.x * kColumnPiece + kColumnPiece, args.columns);   \
       column < end; column += threads.x)

constant uint kActivation [[function_constant(0)]];  // core/activation.h: 0 silu, 1 gelu_tanh, 2 relu_squared, 3 clamped_swiglu

// 1 / (1 + exp(-x)), without a number that overflows.
static inline float sigmoid(float x) {
  const float e = precise::exp(-fabs(x));
  const float numerator = x >= 0.0f ? 1.0f : e;
  return numerator / (1.0f + e);
}

static inline float activated(float x) {
  if (kActivation == 1) return x * sigmoid(x * fma(x * x, 0.0713548163f, 1.59576912f));
  if (kActivation == 2) return x < 0.0f ? 0.0f : x * x;
  return x * sigmoid(x);
}

// clamped_swiglu is of both: a NaN stays one.
static inline float gated_product(float gate, float up) {
  if (kActivation == 3) {
    const float g = gate > 7.0f ? 7.0f : gate;
    const float u = up > 7.0f ? 7.0f : up < -7.0f ? -7.0f : up;
    return (u + 1.0f) * (g * sigmoid(1.702f * g));
  }
  return activated(gate) * up;
}

kernel void add(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                device float* out [[buffer(2)]], constant ElementwiseArgs& args [[buffer(3)]],
                uint3 group [[threadgroup_position_in_grid]], uint3 thread_in_group [[thread_position_in_threadgroup]],
                uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { out[row * args.out_stride + c] = a[row * args.a_stride + c] + b[row * args.b_stride + c]; }
}

// a = a + b
kernel void add_in_place(device float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                         constant ElementwiseArgs& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                         uint3 thread_in_group [[thread_position_in_threadgroup]],
                         uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { a[row * args.a_stride + c] += b[row * args.b_stride + c]; }
}

// x = x + x
kernel void double_in_place(device float* x [[buffer(0)]], constant ElementwiseArgs& args [[buffer(1)]],
                            uint3 group [[threadgroup_position_in_grid]],
                            uint3 thread_in_group [[thread_position_in_threadgroup]],
                            uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { x[row * args.a_stride + c] += x[row * args.a_stride + c]; }
}

// x[row] = x[row] + bias
kernel void add_bias(device float* x [[buffer(0)]], device const float* bias [[buffer(1)]],
                     constant ElementwiseArgs& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                     uint3 thread_in_group [[thread_position_in_threadgroup]],
                     uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { x[row * args.a_stride + c] += bias[c]; }
}

// out = gated_product(a, b)
kernel void gated(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                   device float* out [[buffer(2)]], constant ElementwiseArgs& args [[buffer(3)]],
                   uint3 group [[threadgroup_position_in_grid]],
                   uint3 thread_in_group [[thread_position_in_threadgroup]],
                   uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { out[row * args.out_stride + c] = gated_product(a[row * args.a_stride + c], b[row * args.b_stride + c]); }
}

// a = gated_product(a, b)
kernel void gated_in_gate(device float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                           constant ElementwiseArgs& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                           uint3 thread_in_group [[thread_position_in_threadgroup]],
                           uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) {
    const ulong at = row * args.a_stride + c;
    a[at] = gated_product(a[at], b[row * args.b_stride + c]);
  }
}

// b = gated_product(a, b)
kernel void gated_in_up(device const float* a [[buffer(0)]], device float* b [[buffer(1)]],
                         constant ElementwiseArgs& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                         uint3 thread_in_group [[thread_position_in_threadgroup]],
                         uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) {
    const ulong at = row * args.b_stride + c;
    b[at] = gated_product(a[row * args.a_stride + c], b[at]);
  }
}

// x = gated_product(x, x)
kernel void gated_in_both(device float* x [[buffer(0)]], constant ElementwiseArgs& args [[buffer(1)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint3 thread_in_group [[thread_position_in_threadgroup]],
                           uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) {
    const ulong at = row * args.a_stride + c;
    x[at] = gated_product(x[at], x[at]);
  }
}

// out = activated(x)
kernel void activate(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                     constant ElementwiseArgs& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                     uint3 thread_in_group [[thread_position_in_threadgroup]],
                     uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { out[row * args.out_stride + c] = activated(x[row * args.a_stride + c]); }
}

kernel void activate_in_place(device float* x [[buffer(0)]], constant ElementwiseArgs& args [[buffer(1)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint3 thread_in_group [[thread_position_in_threadgroup]],
                              uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { x[row * args.a_stride + c] = activated(x[row * args.a_stride + c]); }
}

// out = cap * tanh(x / cap)
kernel void soft_cap(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                     constant NumberArgs& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                     uint3 thread_in_group [[thread_position_in_threadgroup]],
                     uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) {
    out[row * args.out_stride + c] = args.number * precise::tanh(x[row * args.x_stride + c] / args.number);
  }
}

kernel void soft_cap_in_place(device float* x [[buffer(0)]], constant NumberArgs& args [[buffer(1)]],
                              uint3 group [[threadgroup_position_in_grid]],
                              uint3 thread_in_group [[thread_position_in_threadgroup]],
                              uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { x[row * args.x_stride + c] = args.number * precise::tanh(x[row * args.x_stride + c] / args.number); }
}

// out = x * factor
kernel void scale(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                  constant NumberArgs& args [[buffer(2)]], uint3 group [[threadgroup_position_in_grid]],
                  uint3 thread_in_group [[thread_position_in_threadgroup]],
                  uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { out[row * args.out_stride + c] = x[row * args.x_stride + c] * args.number; }
}

kernel void scale_in_place(device float* x [[buffer(0)]], constant NumberArgs& args [[buffer(1)]],
                           uint3 group [[threadgroup_position_in_grid]],
                           uint3 thread_in_group [[thread_position_in_threadgroup]],
                           uint3 threads [[threads_per_threadgroup]]) {
  const ulong row = group.y;
  EACH_COLUMN(c) { x[row * args.x_stride + c] *= args.number; }
}

// out[i] = x[rows[i]]
kernel void take_rows(device const float* x [[buffer(0)]], constant uint* rows [[buffer(1)]],
                      device float* out [[buffer(2)]], constant ElementwiseArgs& args [[buffer(3)]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint3 thread_in_group [[thread_position_in_threadgroup]],
                      uint3 threads [[threads_per_threadgroup]]) {
  const ulong from = rows[group.y];
  const ulong to = group.y;
  EACH_COLUMN(c) { out[to * args.out_stride + c] = x[from * args.a_stride + c]; }
}
