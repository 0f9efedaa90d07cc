// Q3_K: 256 weights in 110 bytes, weight = (d * (s - 32)) * (q - 4), with s for each 16 (format/q3_k.h). A piece is, of one
// half of the block, 4 bytes of the low two bits: weights i to i + 3, and those 32, 64 and 96 after them. The third bits of
// weights i, i + 32, i + 64 ... of all 256 are one byte.
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
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 16 * 110;
    uint q[16];
    load_pairs(block + 32 + half_block * 32 + i, q);
    const float d = half_at(block + 108);
    for (uint run = 0; run < 4; ++run) {
      for (uint k = 0; k < 4; ++k) q[4 * run + k] |= (block[i + k] >> (half_block * 4 + run) & 1) << 2;
      const uint group = 2 * run + i / 16;  // of the half block's 8 scales
      const uint low = block[96 + group] >> half_block * 4 & 15;
      const uint high = block[104 + group % 4] >> (half_block * 4 + group / 4 * 2) & 3;
      const float scale = d * float(int(low | high << 4) - 32);
      scale_codes(q + 4 * run, 4, scale, -4.0f * scale, w + 4 * run);
    }
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
