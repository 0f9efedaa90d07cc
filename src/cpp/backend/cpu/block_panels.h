// What the kernels of block formats take: panels of units as format/block_layout.h has them, and a tile of tokens. Plain
// data only: ISA files include this.
#pragma once

#include <cstdint>

#include "format/block_layout.h"

namespace llama2cpp {

// A unit unpacked, for several tiles of tokens: [64 quads][16 rows][4] bytes, then f32 [8 blocks][halves][16 rows] of D,
// and the same of M where there is a minimum, or of zero points. Fewer blocks leave the rest of each part as it was.
inline constexpr std::int64_t kUnpackedScales = 4096;
inline constexpr std::int64_t kUnpackedMinimums = 5120;
inline constexpr std::int64_t kUnpackedBytes = 6144;

// One tile of tokens, its input rounded to int8 in blocks of 32.
struct BlockInput {
  const std::int8_t* x;        // [blocks][n_tokens][32]
  const float* scales;         // [blocks][n_tokens]
  const std::int32_t* starts;  // [blocks][halves][n_tokens] minus the sum of the half's x
  const float* sums;           // [blocks][halves][n_tokens] scale * the sum of the half's x
  const float* f32 = nullptr;  // [32 * blocks][n_tokens] in place of all that, where it is not rounded
};

// One token's row, to be rounded to int8 in blocks of 32: scale = largest / 127, q = x / scale, halves to even. The rest
// is its place in a tile's BlockInput.
struct BlockRounding {
  const float* x;  // [32 * blocks]
  std::int64_t blocks;
  std::int64_t halves;    // 1 or 2
  std::int64_t n_tokens;  // of the tile
  std::int8_t* q;         // [blocks] of 32, n_tokens * 32 from one to the next
  float* scales;          // [blocks], n_tokens from one to the next, as in what follows
  std::int32_t* starts;   // [blocks][halves]
  float* sums;            // [blocks][halves]
};

// n_panels panels times one tile of tokens.
struct BlockCall {
  BlockLayout layout;
  const std::uint8_t* panels;  // packed units, [n_panels] of as many as `blocks` fill; or as many unpacked ones
  std::int64_t panel_stride;   // bytes from one panel to the next
  std::int64_t n_panels;
  std::int64_t blocks;  // of 32 columns
  BlockInput input;
  std::int64_t n_tokens;  // 1 to KernelTable::tile, of packed units half as many again; floats: 1 to kFewTokens
  float* out;             // [n_tokens][16 * n_panels]
  std::int64_t out_stride;
  std::int64_t last_rows;  // rows of the last panel that exist, 1 to 16
  std::int64_t turn = 0;   // packed units: of the calls that go past these panels one after the other, which one it is
  std::int64_t turns = 1;
  bool first;  // out starts at zero; otherwise the sum goes on from what is there
};

}  // namespace llama2cpp
