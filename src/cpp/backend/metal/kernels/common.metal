// What the products of all formats share. A format file defines
//
//   struct Format {
//     static constant constexpr uint kSize, kRun, kStep;  // a piece, see below
//     static constant constexpr uint kRows;               // rows that a simdgroup of matvec has
//     static constant constexpr bool kRowsTogether;       // whether neighbours in memory are rows, not columns
//     Planes planes;
//     constant WeightArgs* of;
//     void load(uint row, uint piece, thread float* w) const;  // decodes one piece -> w [kSize]
//   };
//
// which is all that is said of a format, and includes the kernels after it.
//
// A piece is what one thread decodes at once: kSize weights of a row, of which each kRun are neighbours, and runs lie kStep
// columns apart. It follows from how bits lie: where a byte holds weight i in its low half and weight i + 16 in its high
// half, eight bytes are two runs of 8 with a step of 16. Pieces of a row are counted so that neighbouring pieces are
// neighbouring bytes. What a last piece has beyond the row is 0.
#include <metal_stdlib>

#include "args.h"

using namespace metal;

// How four neighbouring numbers of a row are loaded, of x and of weights that are plain numbers. 2: at once, as rows begin at
// multiples of four of them; 1: one by one, as rows begin anywhere; 0: and the last piece of a row may not be whole.
constant uint kFours [[function_constant(0)]];

// A weight's planes (format.h). A format that has fewer is given the first one again.
struct Planes {
  device const uchar* codes;
  device const uchar* scales;
  device const uchar* zeros;
  device const uchar* groups;
};

// Pieces of a row.
template <class Format>
uint pieces_of(uint columns) {
  return (columns + Format::kSize - 1) / Format::kSize;
}

// The column where a run of a piece begins. All runs of kStep / kRun neighbouring pieces are one stretch of columns.
template <class Format>
uint column_of(uint piece, uint run) {
  const uint neighbours = Format::kStep / Format::kRun;
  const uint stretch = neighbours * Format::kSize;
  return piece / neighbours * stretch + piece % neighbours * Format::kRun + run * Format::kStep;
}

// Numbers [column, column + 4) of a row, `column` a multiple of 4. Zeros after its end.
template <class T>
vec<T, 4> load4(device const T* row, uint column, uint columns) {
  device const T* const p = row + column;
  if (kFours == 2) return *(device const vec<T, 4>*)p;
  if (kFours == 1) return vec<T, 4>(p[0], p[1], p[2], p[3]);
  const uint left = columns - min(column, columns);
  return vec<T, 4>(left > 0 ? p[0] : T(0), left > 1 ? p[1] : T(0), left > 2 ? p[2] : T(0), left > 3 ? p[3] : T(0));
}

// A row of x where a piece's weights lie -> values [kSize].
template <class Format>
void load_inputs(device const float* x, uint columns, uint piece, thread float* values) {
  for (uint k = 0; k < Format::kSize; k += 4) {
    const float4 four = load4(x, column_of<Format>(piece, k / Format::kRun) + k % Format::kRun, columns);
    for (uint i = 0; i < 4; ++i) values[k + i] = four[i];
  }
}

// The sum of w[k] * inputs[k] over a piece. Four sums side by side: they do not wait for each other, and shorter chains of
// additions are more exact.
template <class Format>
float dot_of(thread const float* w, thread const float* inputs) {
  float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  for (uint k = 0; k < Format::kSize; ++k) sums[k % 4] = fma(w[k], inputs[k], sums[k % 4]);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// --- what formats of several bits share ---

// w = scale * code + minimum. One rounding where the product is exact, and scale * (code - offset) exactly so, as
// `minimum` = -offset * scale.
inline void scale_codes(thread const uint* codes, uint count, float scale, float minimum, thread float* w) {
  for (uint i = 0; i < count; ++i) w[i] = fma(scale, float(codes[i]), minimum);
}

inline float half_at(device const uchar* p) { return float(*(device const half*)p); }
inline uint ushort_at(device const uchar* p) { return *(device const ushort*)p; }

// Eight bytes: their low halves are one run of codes, their high halves the next.   -> codes [16]
inline void load_nibbles(device const uchar* p, thread uint* codes) {
  for (uint i = 0; i < 8; i += 2) {
    const uint two = ushort_at(p + i);
    codes[i] = two & 15;
    codes[i + 1] = two >> 8 & 15;
    codes[i + 8] = two >> 4 & 15;
    codes[i + 9] = two >> 12;
  }
}

// 32 bits at `p`, the fifth bits of 32 weights in their order: those of weights i to i + 7 and i + 16 to i + 23.
//                                                                                    -> added to codes [16]
inline void add_fifth_bits(device const uchar* p, uint i, thread uint* codes) {
  const uint first = ushort_at(p) >> i;
  const uint second = ushort_at(p + 2) >> i;
  for (uint k = 0; k < 8; ++k) {
    codes[k] |= (first >> k & 1) << 4;
    codes[k + 8] |= (second >> k & 1) << 4;
  }
}

// Four bytes of two bits each of four runs, the first lowest.   -> codes [16]
inline void load_pairs(device const uchar* p, thread uint* codes) {
  for (uint i = 0; i < 4; i += 2) {
    const uint two = ushort_at(p + i);
    for (uint run = 0; run < 4; ++run) {
      codes[4 * run + i] = two >> 2 * run & 3;
      codes[4 * run + i + 1] = two >> (8 + 2 * run) & 3;
    }
  }
}

// What a weight's code is multiplied by, for the first and the second 32 of columns [64 * quarter, 64 * quarter + 64) of a
// block of Q4_K or Q5_K, and then what is added to each. The block begins with d and dmin, f16, and 12 bytes of 6-bit scales
// and minima, eight of each (format/blocks.h). Two neighbours at a time, each in a byte of a ushort:
//   bytes 0-3: scale 0-3, on top the high 2 bits of scale 4-7;  bytes 4-7: minimum 0-3, on top those of minimum 4-7;
//   bytes 8-11: the low 4 bits of scale 4-7, and above them those of minimum 4-7
inline float4 k_scales(device const uchar* block, uint quarter) {
  device const uchar* const p = block + 4 + quarter % 2 * 2;
  const uint a = ushort_at(p);
  const uint b = ushort_at(p + 4);
  const uint c = ushort_at(p + 8);
  const bool late = quarter >= 2;
  const uint s = late ? (c & 0x0F0F) | (a & 0xC0C0) >> 2 : a & 0x3F3F;
  const uint m = late ? (c >> 4 & 0x0F0F) | (b & 0xC0C0) >> 2 : b & 0x3F3F;
  const float d = half_at(block);
  const float dmin = -half_at(block + 2);
  return float4(d * float(s & 255), d * float(s >> 8), dmin * float(m & 255), dmin * float(m >> 8));
}
