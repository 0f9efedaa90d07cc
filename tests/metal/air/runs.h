// What is passed to the kernels of others, both as Apple's compiler left them and as they were published.
#pragma once

#include <cstdint>

#include "fibers.h"

struct Attention {
  const void *q, *k, *v;  // half: [heads, rows, 64], [kv_heads, keys, 64] twice
  void* out;
  int group;  // heads for each kv head
  int keys;
  float scale;
  bool causal;
};

struct GemmParameters {
  int rows, columns, inner, a_stride, b_stride, out_stride, column_tiles, row_tiles;
  std::int64_t batch_strides[3];
  int swizzle, whole_steps, batch_dimensions;
};

struct Gemm {
  const float *a, *b;
  float* out;
  GemmParameters parameters;
  bool aligned;
};

struct Matvec {
  const std::uint32_t* codes;
  const float *scales, *biases, *x;
  float* out;
  int columns, rows;
};

struct Softmax {
  const float* x;
  float* out;
  int columns;
};

void attention_source(const Attention&, const soft::ThreadIds&);
void gemm_source(const Gemm&, const soft::ThreadIds&);
void matvec_source(const Matvec&, const soft::ThreadIds&);
void softmax_source(const Softmax&, const soft::ThreadIds&);
