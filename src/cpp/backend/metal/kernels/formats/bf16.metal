// bfloat16, the upper half of a float32: widened by a shift, which is exact and needs no type that M1 and M2 emulate.
// A piece is four of them.
#include "common.metal"

struct Format {
  static constant constexpr uint kSize = 4;
  static constant constexpr uint kRun = 4;
  static constant constexpr uint kStep = 4;
  static constant constexpr uint kRows = 2;
  static constant constexpr bool kRowsTogether = false;
  Planes planes;
  constant WeightArgs* of;

  void load(uint row, uint piece, thread float* w) const {
    device const ushort* const numbers = (device const ushort*)(planes.codes + ulong(row) * of->row_bytes);
    const ushort4 four = load4(numbers, 4 * piece, of->columns);
    for (uint i = 0; i < 4; ++i) w[i] = as_type<float>(uint(four[i]) << 16);
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
