// Q4_K: 256 weights in 144 bytes, weight = (d * s) * q - dmin * m, with s and m for each 32 (format/q4_k.h). 32 bytes of q
// are 64 weights; a piece is 8 of them: weights i to i + 7 of the 64 in their low halves, i + 32 to i + 39 in their high
// halves.
#include "common.metal"

struct Format {
  static constant constexpr uint kSize = 16;
  static constant constexpr uint kRun = 8;
  static constant constexpr uint kStep = 32;
  static constant constexpr uint kRows = 2;
  static constant constexpr bool kRowsTogether = false;
  Planes planes;
  constant WeightArgs* of;

  void load(uint row, uint piece, thread float* w) const {
    const uint quarter = piece % 16 / 4;  // 64 of the 256
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 16 * 144;
    const float4 k = k_scales(block, quarter);
    uint q[16];
    load_nibbles(block + 16 + quarter * 32 + piece % 4 * 8, q);
    scale_codes(q, 8, k.x, k.z, w);
    scale_codes(q + 8, 8, k.y, k.w, w + 8);
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
