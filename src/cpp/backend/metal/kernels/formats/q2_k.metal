// Q2_K: 256 weights in 84 bytes, weight = (d * s) * q - dmin * m, with s and m for each 16 (format/q2_k.h). A piece is, of one
// half of the block, 4 bytes of q: weights i to i + 3, and those 32, 64 and 96 after them.
#include "common.metal"

struct Format {
  static constant constexpr uint kSize = 16;
  static constant constexpr uint kRun = 4;
  static constant constexpr uint kStep = 32;
  static constant constexpr uint kRows = 2;
  static constant constexpr bool kRowsTogether = false;
  Planes planes;
  constant WeightArgs* of;

  void load(uint row, uint piece, thread float* w) const {
    const uint half_block = piece % 16 / 8;  // 128 of the 256
    const uint i = piece % 8 * 4;
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 16 * 84;
    device const uchar* const s = block + half_block * 8 + i / 16;
    uint q[16];
    load_pairs(block + 16 + half_block * 32 + i, q);
    const float d = half_at(block + 80);
    const float dmin = half_at(block + 82);
    for (uint run = 0; run < 4; ++run) {
      const uint both = s[2 * run];  // s in the low half, m in the high half
      scale_codes(q + 4 * run, 4, d * float(both & 15), -dmin * float(both >> 4), w + 4 * run);
    }
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
