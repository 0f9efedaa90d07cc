// What host and kernels agree on, as both sides see it: the sizes that a grid is cut into, and what is passed by value, in
// structs of 4-byte scalars only, so that no compiler can lay them out in another way. Strides are in elements, from one row
// to the next.
#pragma once

#ifndef __METAL_VERSION__
#include <cstdint>
namespace llama2cpp::metal {
using std::uint32_t;
#define LLAMA2CPP_SIZE inline constexpr
#else
#define LLAMA2CPP_SIZE constant constexpr
#endif

LLAMA2CPP_SIZE uint32_t kSimdgroup = 32;  // threads of a simdgroup

// Of a group of threads.
LLAMA2CPP_SIZE uint32_t kColumnPiece = 1024;  // elementwise and norm: columns
LLAMA2CPP_SIZE uint32_t kPairPiece = 256;     // rope: pairs
LLAMA2CPP_SIZE uint32_t kStorePiece = 512;    // store_kv: columns
LLAMA2CPP_SIZE uint32_t kKeyPiece = 64;       // scores: keys
LLAMA2CPP_SIZE uint32_t kSplit = 1024;        // decode: keys
LLAMA2CPP_SIZE uint32_t kMostSimdgroups = 8;  // attention
LLAMA2CPP_SIZE uint32_t kKeys = 4;           // keys that a simdgroup of attention adds up apart, so that sums are short
LLAMA2CPP_SIZE uint32_t kColumns = 128;      // of z that a group of attention makes together
LLAMA2CPP_SIZE uint32_t kTileRows = 64;      // matmul
LLAMA2CPP_SIZE uint32_t kTileTokens = 32;    //
LLAMA2CPP_SIZE uint32_t kTileColumns = 32;   // of a step
LLAMA2CPP_SIZE uint32_t kTileThreads = 128;  // 4 simdgroups
LLAMA2CPP_SIZE uint32_t kRowSimdgroups = 8;  // matvec_rows

// add, gated, activate, add_bias, take_rows: out [rows, columns].
struct ElementwiseArgs {
  uint32_t columns;
  uint32_t a_stride;
  uint32_t b_stride;
  uint32_t out_stride;
};
static_assert(sizeof(ElementwiseArgs) == 16, "the same on both sides");

// soft_cap, scale: x and out [rows, columns].
struct NumberArgs {
  uint32_t columns;
  uint32_t x_stride;
  uint32_t out_stride;
  float number;  // the cap, or the factor
};
static_assert(sizeof(NumberArgs) == 16, "the same on both sides");

// rms_scale, center, normalize: x [rows, columns], scale [rows, 1].
struct NormArgs {
  uint32_t columns;
  uint32_t x_stride;
  uint32_t scale_stride;
  uint32_t out_stride;
  float eps;
};
static_assert(sizeof(NormArgs) == 20, "the same on both sides");

// rope: pairs of a row of x that are turned, cos and sin [rows, pairs of a head].
struct RopeArgs {
  uint32_t pairs;
  uint32_t x_stride;
  uint32_t cos_stride;
  uint32_t sin_stride;
};
static_assert(sizeof(RopeArgs) == 16, "the same on both sides");

// A span of attention, or of store_kv: rows of q, k, v, z; a cache of [kv_heads, context, head_dim].
struct SpanArgs {
  uint32_t rows;
  uint32_t position;  // of the first row
  uint32_t window;    // 0: none
  uint32_t heads;     // of q
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t context;
  uint32_t cache_stride;  // of keys and values, from position to position
  uint32_t in_stride;     // of q, or of k
  uint32_t out_stride;    // of z, or of v
  uint32_t keys;          // columns of scores and pattern
  uint32_t splits;        // parts that a row's keys are cut into
  uint32_t scores_stride;
  uint32_t pattern_stride;
  float factor;  // scores are q . k * factor
  float cap;     // and then cap * tanh(score / cap), where there is one
};
static_assert(sizeof(SpanArgs) == 64, "the same on both sides");

// A weight [rows, columns] as its planes hold it. Bytes are from one row to the next, in plane 0 and in plane 1.
struct WeightArgs {
  uint32_t rows, columns;
  uint32_t row_bytes, scale_bytes;
  uint32_t groups;  // of a row, where it has scales of its own
};
static_assert(sizeof(WeightArgs) == 20, "both sides");

// matmul: x [tokens, columns] -> out [tokens, rows].
struct ProductArgs {
  WeightArgs weight;
  uint32_t tokens;
  uint32_t x_stride, out_stride;
};
static_assert(sizeof(ProductArgs) == 32, "both sides");

// embed: tokens [tokens] -> out [tokens, columns].
struct EmbedArgs {
  WeightArgs weight;
  uint32_t tokens;
  uint32_t out_stride;
};
static_assert(sizeof(EmbedArgs) == 28, "both sides");

#ifndef __METAL_VERSION__
}  // namespace llama2cpp::metal
#endif
