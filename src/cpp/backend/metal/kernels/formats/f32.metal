// float32. A piece is four of them.
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
    device const float* const numbers = (device const float*)(planes.codes + ulong(row) * of->row_bytes);
    const float4 four = load4(numbers, 4 * piece, of->columns);
    for (uint i = 0; i < 4; ++i) w[i] = four[i];
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
