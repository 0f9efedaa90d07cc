// What an ISA provides: one row of plain function pointers. ISA files include this and intrinsics only, so that the
// linker can never pick an AVX-512 copy of an inline function for the whole program.
//
// The rules that all implementations follow to the bit are reference.cpp, and llama2c_reference.cpp for tables of
// Arithmetic::llama2c.
#pragma once

#include <cstdint>

#include "backend/arithmetic.h"
#include "backend/cpu/block_panels.h"
#include "backend/cpu/llm_int8.h"
#include "core/activation.h"
#include "core/q8_block.h"

namespace llama2cpp {

// Products are summed in blocks of this many k, and then block sums in order.
inline constexpr std::int64_t kBlock = 256;
// Attention sums values in tiles of this many positions, and then tile sums in order.
inline constexpr std::int64_t kKeyTile = 256;

// One block of a matmul: n_panels panels times one tile of tokens. W is how the panels hold a weight: float, or 16 bits. X is
// how tiles hold a token's number.
template <class W, class X = float>
struct PanelBlockOf {
  const W* panels;            // [n_panels] of [n_k][16]
  std::int64_t panel_stride;  // weights from one panel to the next
  std::int64_t n_panels;
  std::int64_t n_k;       // 1 to kBlock; any with at most kFewTokens
  const X* x;             // [n_k][n_tokens]
  std::int64_t n_tokens;  // 1 to KernelTable::tile
  float* out;             // [n_tokens][16 * n_panels]
  std::int64_t out_stride;
  std::int64_t last_rows;  // rows of the last panel that exist, 1 to 16
  bool first;              // out starts at zero; otherwise the block is added to what is there
};
using PanelBlock = PanelBlockOf<float>;
using PanelBlock16 = PanelBlockOf<std::uint16_t>;
// Weights and tokens in pairs of bf16: a "k" is two of them, the even one in the lower half, and one word. Sums go on from
// what is in out.
using PairBlock = PanelBlockOf<std::uint32_t, std::uint32_t>;

// One block of a matmul of int8 weights with rounded input: n_panels panels times one tile of tokens. Four neighbouring
// k of a row form a quad, which processors multiply and add at once; a group that four does not divide ends in zeros.
//
// A panel is one stream of [groups] of { [quads][16 rows][4 k] weights + 128 as bytes; [16 rows] scales as f32 }.
struct Int8Block {
  const std::uint8_t* panels;
  std::int64_t panel_stride;  // bytes from one panel to the next
  std::int64_t n_panels;
  std::int64_t groups;
  std::int64_t quads;            // of one group
  const std::int8_t* x;          // [groups][quads][n_tokens][4]
  const float* x_scales;         // [groups][n_tokens]
  const std::int32_t* x_starts;  // [groups][n_tokens] minus the sum of the group's x: times 128 it undoes the + 128
  std::int64_t n_tokens;         // 1 to KernelTable::tile
  float* out;                    // [n_tokens][16 * n_panels]
  std::int64_t out_stride;
  std::int64_t last_rows;  // rows of the last panel that exist, 1 to 16
  bool first;              // out starts at zero; otherwise the sum goes on from what is there
};

// Queries that go over the same keys and values together, at most: what is read serves all of them.
inline constexpr std::int64_t kMostQueries = 48;

// out[i][p] = (q[i] . keys[p]) / root. T is how the cache holds numbers: float, 16 bits, or a block of 32.
template <class T>
struct ScoresOf {
  std::int64_t queries;          // 1 to kMostQueries
  const float* q[kMostQueries];  // each [head_dim]
  const T* keys;                 // [n][head_dim], of blocks [n][head_dim / 32]
  std::int64_t n;
  std::int64_t head_dim;
  float root;
  float* out[kMostQueries];  // each [n]
  // Where keys are not in the caches: what is read next. It and the keys are asked of memory before they are needed.
  const T* ahead = nullptr;
};

// z[i][d] = sum over the first n[i] positions p of pattern[i][p] * values[p][d]
template <class T>
struct MixOf {
  std::int64_t queries;                // 1 to kMostQueries
  const float* pattern[kMostQueries];  // each [n[i]]
  const T* values;                     // [most of n][head_dim], of blocks [..][head_dim / 32]
  std::int64_t n[kMostQueries];
  std::int64_t head_dim;
  float* z[kMostQueries];    // each [head_dim]
  const T* ahead = nullptr;  // as in ScoresOf
};

// Tokens that matmul_wide takes at most; with so few, matmuls of floats take any number of k.
inline constexpr std::int64_t kFewTokens = 2;

struct KernelTable {
  const char* name;            // of the instruction set; its variants share it
  std::int64_t tile;           // tokens that a matmul tile takes at most
  std::int64_t packed_tokens;  // of block formats with rounded input: for more than these, units are unpacked first
  std::int64_t most_scores;    // floats that the scores of a worker's queries take, where that is for four and more

  void (*matmul_f32)(const PanelBlock& block);
  void (*matmul_f16)(const PanelBlock16& block);
  void (*matmul_bf16)(const PanelBlock16& block);
  void (*matmul_pairs)(const PairBlock& block);
  void (*matmul_int8)(const Int8Block& block);
  // Rounds each group of x to int8: scale = largest / 127, q = x / scale, halves away from zero.
  //                                                x [groups * group] -> q the same, scales [groups]
  void (*quantize)(const float* x, std::int64_t groups, std::int64_t group, std::int8_t* q, float* scales);

  // Block formats. Packed units times a tile; or units unpacked first, which pays where there are many tiles.
  void (*matmul_blocks)(const BlockCall& call);
  void (*matmul_open)(const BlockCall& call);
  // Packed units times at most kFewTokens tokens whose input stays floats: the weights become floats in registers.
  void (*matmul_wide)(const BlockCall& call);
  void (*unpack_blocks)(const BlockLayout& layout, const std::uint8_t* unit, std::int64_t blocks, std::uint8_t* open);
  // An unpacked unit's weights as floats               -> out [32 * blocks][16]
  void (*widen_blocks)(const BlockLayout& layout, const std::uint8_t* open, std::int64_t blocks, float* out);
  // Rounds a row and puts it into a tile.
  void (*quantize_blocks)(const BlockRounding& row);

  // LLM.int8(): int8 weights with a scale for each whole row, outliers in float. quantize_row returns their number.
  void (*matmul_llm_int8)(const LlmInt8Call& call);
  std::int64_t (*quantize_row)(const LlmInt8Row& row);

  // sum of x[i]^2                                  x [n]
  float (*sum_squares)(const float* x, std::int64_t n);
  // out = (x * factor) * gain; without the second product where gain is null
  void (*scale)(const float* x, float factor, const float* gain, float* out, std::int64_t n);
  // out = x - mean(x)
  void (*center)(const float* x, float* out, std::int64_t n);
  // out = a + b
  void (*add)(const float* a, const float* b, float* out, std::int64_t n);
  // out = activation(gate) * up; without the product where up is null. clamped_swiglu is of both, and up is not null
  void (*gated)(Activation activation, const float* gate, const float* up, float* out, std::int64_t n);
  // Of gated: d is that of its output; it becomes that of gate, and dup that of up. Both null: without the product.
  void (*gated_gradient)(Activation activation, const float* gate, const float* up, float* d, float* dup,
                         std::int64_t n);
  // out = cap * tanh(x / cap); out may be x
  void (*soft_cap)(const float* x, float cap, float* out, std::int64_t n);
  // Turns pairs (x[2j], x[2j + 1]) or (x[j], x[j + n/2]).   x [n], cos and sin [n / 2]
  void (*rope_interleaved)(float* x, const float* cos, const float* sin, std::int64_t n);
  void (*rope_half_split)(float* x, const float* cos, const float* sin, std::int64_t n);
  // f32 -> f16, to nearest even
  void (*narrow)(const float* x, std::uint16_t* out, std::int64_t n);
  // f32 -> bf16, to nearest even
  void (*narrow_bf16)(const float* x, std::uint16_t* out, std::int64_t n);
  // Rows become columns, 16 of them: x [rows][16], each `stride` after the last -> out [16][rows], each `out_stride`.
  // At most 16 rows.
  void (*turn_rows)(const float* x, std::int64_t stride, std::int64_t rows, float* out, std::int64_t out_stride);

  // Attention's products of queries with keys, and of patterns with values
  void (*scores_f32)(const ScoresOf<float>& call);
  void (*scores_f16)(const ScoresOf<std::uint16_t>& call);
  void (*scores_q8)(const ScoresOf<Q8Block>& call);
  // out = softmax(scores), with a sink (null: none) as one more score that has no output   [n]; out may be scores
  void (*softmax)(const float* scores, const float* sink, float* out, std::int64_t n);
  void (*mix_f32)(const MixOf<float>& call);
  void (*mix_f16)(const MixOf<std::uint16_t>& call);
  void (*mix_q8)(const MixOf<Q8Block>& call);
};

// Null where this build or this machine's family has no such kernels.
const KernelTable* reference_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* scalar_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* avx2_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* avx2_vnni_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* avx512_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* avx512_vnni_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* avx512_bf16_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* neon_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* neon_dotprod_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;
const KernelTable* neon_i8mm_kernels(Arithmetic arithmetic = Arithmetic::contract) noexcept;

}  // namespace llama2cpp
