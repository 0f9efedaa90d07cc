// Q6_K: 256 weights in 210 bytes, weight = (d * s) * (q - 32), with s for each 16 (format/q6_k.h). A piece is, of one half of
// the block, 4 bytes of the high bits and twice 4 bytes of the low bits: weights i to i + 3, and those 32, 64 and 96 after
// them.
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
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 16 * 210;
    device const uchar* const low = block + half_block * 64 + i;
    uint q[16];
    load_pairs(block + 128 + half_block * 32 + i, q);
    for (uint k = 0; k < 4; k += 2) {
      const uint first = ushort_at(low + k);  // of weights 0 to 31 and 64 to 95
      const uint second = ushort_at(low + 32 + k);
      q[k] = q[k] << 4 | (first & 15);
      q[k + 1] = q[k + 1] << 4 | (first >> 8 & 15);
      q[k + 4] = q[k + 4] << 4 | (second & 15);
      q[k + 5] = q[k + 5] << 4 | (second >> 8 & 15);
      q[k + 8] = q[k + 8] << 4 | (first >> 4 & 15);
      q[k + 9] = q[k + 9] << 4 | first >> 12;
      q[k + 12] = q[k + 12] << 4 | (second >> 4 & 15);
      q[k + 13] = q[k + 13] << 4 | second >> 12;
    }
    const float d = half_at(block + 208);
    device const char* const s = (device const char*)(block + 192 + half_block * 8 + i / 16);
    for (uint run = 0; run < 4; ++run) {
      const float scale = d * float(s[2 * run]);
      scale_codes(q + 4 * run, 4, scale, -32.0f * scale, w + 4 * run);
    }
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
