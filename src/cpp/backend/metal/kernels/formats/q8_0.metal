// Q8_0: 32 weights in 34 bytes, weight = d * q (format/q8_0.h). A piece is 8 bytes of q.
#include "common.metal"

struct Format {
  static constant constexpr uint kSize = 8;
  static constant constexpr uint kRun = 8;
  static constant constexpr uint kStep = 8;
  static constant constexpr uint kRows = 2;
  static constant constexpr bool kRowsTogether = false;
  Planes planes;
  constant WeightArgs* of;

  void load(uint row, uint piece, thread float* w) const {
    device const uchar* const block = planes.codes + ulong(row) * of->row_bytes + piece / 4 * 34;
    device const uchar* const q = block + 2 + piece % 4 * 8;
    const float d = half_at(block);
    for (uint i = 0; i < 8; i += 2) {
      const char2 two = as_type<char2>(ushort(ushort_at(q + i)));
      w[i] = d * float(two.x);
      w[i + 1] = d * float(two.y);
    }
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
