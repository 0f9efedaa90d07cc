// llama2.c's int8: plane 0 holds the values, plane 1 a float32 scale for each group of them (format/int8_group.h). A piece is
// 8 values.
#include "common.metal"

// Columns that share a scale: any number that divides a row's.
constant uint kGroup [[function_constant(1)]];

struct Format {
  static constant constexpr uint kSize = 8;
  static constant constexpr uint kRun = 8;
  static constant constexpr uint kStep = 8;
  static constant constexpr uint kRows = 4;
  static constant constexpr bool kRowsTogether = false;
  Planes planes;
  constant WeightArgs* of;

  void load(uint row, uint piece, thread float* w) const {
    device const char* const values = (device const char*)(planes.codes + ulong(row) * of->row_bytes);
    device const float* const scales = (device const float*)(planes.scales + ulong(row) * of->scale_bytes);
    for (uint k = 0; k < 8; k += 4) {
      const uint column = 8 * piece + k;
      const char4 four = load4(values, column, of->columns);
      for (uint i = 0; i < 4; ++i) {
        const uint group = kGroup % 8 == 0 ? 8 * piece / kGroup : min(column + i, of->columns - 1) / kGroup;
        w[k + i] = float(four[i]) * scales[group];
      }
    }
  }
};

#include "matvec.metal"
#include "matmul.metal"
#include "embed.metal"
