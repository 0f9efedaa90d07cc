// Q5_K: 256 weights in 176 bytes, weight = (d * s) * q - dmin * m, with s and m for each 32 (format/q5_k.h). 32 bytes of the
// low bits are 64 weights; a piece is 8 of them: weights i to i + 7 of the 64 in their low halves, i + 32 to i + 39 in their
// high halves. The fifth bits of weights i, i + 32, i + 64 ... of all 256 are one byte.
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
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 16 * 176;
    device const uchar* const high = block + 16 + piece % 4 * 8;
    const float4 k = k_scales(block, quarter);
    uint q[16];
    load_nibbles(block + 48 + quarter * 32 + piece % 4 * 8, q);
    for (uint i = 0; i < 8; i += 2) {
      const uint bits = ushort_at(high + i) >> 2 * quarter;
      q[i] |= (bits & 1) << 4;
      q[i + 1] |= (bits >> 8 & 1) << 4;
      q[i + 8] |= (bits >> 1 & 1) << 4;
      q[i + 9] |= (bits >> 9 & 1) << 4;
    }
    scale_codes(q, 8, k.x, k.z, w);
    scale_codes(q + 8, 8, k.y, k.w, w + 8);
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
