// GPTQ's 4 bits: weight = scale * (q - zero), where a group of columns has a scale and a zero for each row (format/gptq.h).
//   codes   [columns / 8][rows] words: 8 neighbouring columns of a row, the first lowest
//   scales  [groups][rows] half, or float where kFloatScales
//   zeros   [groups][rows / 8] words: 8 neighbouring rows, the first lowest; version 1 stores one less, modulo 16
//   groups  [columns], the group of each column, where kIndexed
// A piece is a word of codes. Columns are taken as they lie: g_idx says all that Weight::order does.
#include "common.metal"

// Columns that share a scale and a zero. A multiple of 8 where a piece is to have one.
constant uint kGroup [[function_constant(1)]];
constant uint kIndexed [[function_constant(2)]];
constant uint kFloatScales [[function_constant(3)]];
constant uint kStoredLess [[function_constant(4)]];

struct Format {
  static constant constexpr uint kSize = 8;
  static constant constexpr uint kRun = 8;
  static constant constexpr uint kStep = 8;
  static constant constexpr uint kRows = 1;
  static constant constexpr bool kRowsTogether = true;
  Planes planes;
  constant WeightArgs* of;

  // A file may change after its reader has checked the groups: they are held within the planes.
  uint group_of(uint column) const {
    return min(kIndexed ? ((device const uint*)planes.groups)[column] : column / kGroup, of->groups - 1);
  }

  float scale_of(uint row, uint group) const {
    const ulong place = ulong(group) * of->rows + row;
    return kFloatScales ? ((device const float*)planes.scales)[place] : float(((device const half*)planes.scales)[place]);
  }

  int zero_of(uint row, uint group) const {
    const uint word = ((device const uint*)planes.zeros)[ulong(group) * (of->rows / 8) + row / 8];
    return int((word >> row % 8 * 4) + kStoredLess & 15);
  }

  void load(uint row, uint piece, thread float* w) const {
    const uint word = ((device const uint*)planes.codes)[ulong(piece) * of->rows + row];
    const bool one_group = !kIndexed && kGroup % 8 == 0;
    float scale = 0.0f;
    int zero = 0;
    for (uint i = 0; i < 8; ++i) {
      if (i == 0 || !one_group) {
        const uint group = group_of(8 * piece + i);
        scale = scale_of(row, group);
        zero = zero_of(row, group);
      }
      w[i] = scale * float(int(word >> 4 * i & 15) - zero);
    }
  }
};

#include "matvec_rows.metal"
#include "matmul.metal"
#include "embed.metal"
