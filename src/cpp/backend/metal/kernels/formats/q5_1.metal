// Q5_1: 32 weights in 24 bytes, weight = d * q + m (format/q5_1.h). A piece is 8 bytes of the low bits: weights i to i + 7 of
// a block in their low halves, i + 16 to i + 23 in their high halves.
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
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 2 * 24;
    uint q[16];
    load_nibbles(block + 8 + piece % 2 * 8, q);
    add_fifth_bits(block + 4, piece % 2 * 8, q);
    scale_codes(q, 16, half_at(block), half_at(block + 2), w);
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
