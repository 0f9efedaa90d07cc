// Panels: a weight's rows sixteen at a time, column by column, one layout for all instruction sets. What they are called
// and how the units of block formats lie. Plain data only: ISA files include this.
//
// A panel of a format that has whole numbers in blocks of 32 columns (GGUF's quantized ones, GPTQ) is a stream of units
// of up to 8 blocks, which is 256 columns. A unit of n blocks is a header and then planes:
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

// SIMD lanes go across these rows, so nothing is ever summed across lanes.
inline constexpr std::int64_t kPanelRows = 16;
inline constexpr std::int64_t kBlockCols = 32;
inline constexpr std::int64_t kUnitBlocks = 8;

// Files hold these layouts: a change of a byte in them is a new kPanelVersion (io/panel_file.h).

//   f32         [k][16 rows]                                    any format, decoded
//   f16, bf16   [k][16 rows]                                    as they are
//   bf16_pairs  [pair][16 rows][2 k]                            bf16, and f16 rounded to it; no file holds it
//   int8_group  [group] of { [quad][16 rows][4 k], [16] f32 }   int8 weights + 128 with their scales
//   blocks      units, see above                                in the weight's order
//   llm_int8    { [quad][16 rows][4 k], [16] f32, ... }         int8 weights + 128, a scale for each row (see LlmInt8Call)
enum class PanelForm : std::uint8_t { f32, f16, bf16, bf16_pairs, int8_group, blocks, llm_int8 };

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
};

}  // namespace llama2cpp
