// LLM.int8() on the CPU: what its kernels take. Plain data only: ISA files include this.
#pragma once

#include <cstdint>

namespace llama2cpp {

// n_panels panels of int8 weights with one scale for each row, times one tile of tokens: integers for most columns, and
// then, column after column, floats for those where a token's input is large.
//
// A panel is { [quads][16 rows][4 k] weights + 128 as bytes; [16] scales as f32; [fixed][16] f16 }, filled up with zeros
// to a multiple of 64 bytes.
struct LlmInt8Call {
  const std::uint8_t* panels;
  std::int64_t panel_stride;  // bytes from one panel to the next
  std::int64_t n_panels;
  std::int64_t quads;            // of a whole row; the last is filled up with zeros
  const std::int8_t* x;          // [quads][n_tokens][4], 0 in the columns that are multiplied in float
  const float* x_scales;         // [n_tokens]
  const std::int32_t* x_starts;  // [n_tokens] minus the sum of the token's x
  std::int64_t n_tokens;         // 1 to KernelTable::tile

  // Either the weight's own columns, the same for all tokens, ...
  std::int64_t fixed;    // how many
  const float* x_fixed;  // [fixed][n_tokens]
  // ... or each token's own, in ascending order; null: none.
  const std::int32_t* counts;   // [n_tokens]
  const std::int32_t* columns;  // [n_tokens][outlier_stride]
  const float* x_outliers;      // [n_tokens][outlier_stride]
  std::int64_t outlier_stride;

  float* out;  // [n_tokens][16 * n_panels]
  std::int64_t out_stride;
  std::int64_t last_rows;  // rows of the last panel that exist, 1 to 16
};

// Rounds a whole row of x to int8: scale = largest / 127, q = x / scale, halves to even. Outliers, whose magnitude is
// above `limit`, become 0 and take no part in the scale; they go to `columns` and `outliers`, in order.
struct LlmInt8Row {
  const float* x;  // [n]
  std::int64_t n;
  float limit;            // infinity: no outliers
  std::int8_t* q;         // [n]
  float* scale;           // [1]
  std::int32_t* columns;  // at most [n]; null where there is no limit
  float* outliers;        // the same
};

}  // namespace llama2cpp
