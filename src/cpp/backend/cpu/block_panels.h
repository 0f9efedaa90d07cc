// Weights in blocks of 32 columns (GGUF's quantised formats), packed into panels of 16 rows: the layout, and what their
// kernels take. Plain data only: ISA files include this.
//
// A panel is a stream of units of up to 8 blocks, which is 256 columns. A unit of n blocks is a header and then planes:
//
//   header  with sub-scales    d f16 [16]; dm f16 [16]; n times { sub int8 [halves][16]; m int8 [halves][16] }
//           without            n times { d f16 [16]; dm f16 [16] }
//           with zero points   for each 2^share blocks { d f16 [16]; zero int8 [16] }
//           dm and m only where there is a minimum; filled up with zeros to a multiple of 64 bytes
//   planes  n times { planes of 4, 2 and 1 bits, or of 8 }
//
// A plane of w bits is [w vectors][16 rows][4 bytes]. The 32 columns are 8 quads of four neighbours. Quad j is in vector
// j * w / 8, shifted up by j * w % 8 bits; its column 4 * j + i is in byte i of the row's four. Weights of 5 bits have
// their low 4 bits in the first plane and the rest in the second, and so do 3 = 2 + 1 and 6 = 4 + 2.
#pragma once

#include <cstdint>

namespace llama2cpp {

inline constexpr std::int64_t kBlockCols = 32;
inline constexpr std::int64_t kUnitBlocks = 8;

// A weight is D * q + M, where q = (what the planes hold) - offset, D = d * sub (or d) and M = dm * m (or dm, or none).
// With zero points it is d * (q - zero).
struct BlockLayout {
  int bits;         // 2, 3, 4, 5, 6 or 8
  int offset;       // 0 or a power of two
  int halves;       // 2 where sub and m differ between the columns 0-15 and 16-31 of a block
  bool sub_scales;  // whether there are sub and m: then units are of 8 blocks
  bool minimum;
  bool zeros = false;  // without sub-scales, halves and minimum
  int share = 0;       // with zero points: 2^share blocks of a unit, at most all, have theirs and the scale in common

  bool operator==(const BlockLayout&) const = default;
};

// A unit opened up, for several tiles of tokens: [64 quads][16 rows][4] bytes, then f32 [8 blocks][halves][16 rows] of D,
// and the same of M where there is a minimum, or of zero points. Fewer blocks leave the rest of each part as it was.
inline constexpr std::int64_t kOpenScales = 4096;
inline constexpr std::int64_t kOpenMinimums = 5120;
inline constexpr std::int64_t kOpenBytes = 6144;

// One tile of tokens, its input rounded to int8 in blocks of 32.
struct BlockInput {
  const std::int8_t* x;        // [blocks][8 quads][n_tokens][4]
  const float* scales;         // [blocks][n_tokens]
  const std::int32_t* starts;  // [blocks][halves][n_tokens] minus the sum of the half's x
  const float* sums;           // [blocks][halves][n_tokens] scale * the sum of the half's x
};

// n_panels panels times one tile of tokens.
struct BlockCall {
  BlockLayout layout;
  const std::uint8_t* panels;  // packed units, or opened ones
  std::int64_t panel_stride;   // bytes from one panel to the next
  std::int64_t n_panels;
  std::int64_t blocks;
  BlockInput input;
  std::int64_t n_tokens;
  float* out;  // [n_tokens][16 * n_panels]
  std::int64_t out_stride;
  std::int64_t last_rows;  // rows of the last panel that exist, 1 to 16
  bool first;              // out starts at zero; otherwise the sum goes on from what is there
};

}  // namespace llama2cpp
