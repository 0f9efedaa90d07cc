// Q5_0: 32 weights in 22 bytes, weight = d * (q - 16) (format/q5_0.h). A piece is 8 bytes of the low bits: weights i to
// i + 7 of a block in their low halves, i + 16 to i + 23 in their high halves.
#include "common.metal"

struct Format {
  static constant constexpr uint kSize = 16;
  static constant constexpr uint kRun = 8;
  static constant constexpr uint kStep = 16;
  static constant constexpr uint kRows = 2;
  static constant constexpr bool kRowsTogether = false;
  Planes planes;
  constant WeightArgs* of;

  void load(uint row, uint piece, thread float* w) const {
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 2 * 22;
    uint q[16];
    load_nibbles(block + 6 + piece % 2 * 8, q);
    add_fifth_bits(block + 2, piece % 2 * 8, q);
    const float d = half_at(block);
    scale_codes(q, 16, d, -16.0f * d, w);
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
