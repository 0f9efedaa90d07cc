// GPTQ's kBits bits, which a format file says: weight = scale * (q - zero), where a group of columns has a scale and a zero
// for each row (format/gptq.h).
//   codes   [columns * kBits / 32][rows] words: down a column of them, value k of a row is the bits from k * kBits on
//   scales  [groups][rows] half, or float where kFloatScales
//   zeros   [groups][rows * kBits / 32] words, the same way along a row of them; version 1 stores one less, modulo 2^kBits
//   groups  [columns], the group of each column, where kIndexed
// A piece is a word of codes; of 3 bits it is three words, as some values reach across two. Columns are taken as they lie:
// g_idx says all that Weight::order does.
#include "common.metal"

// Columns that share a scale and a zero, where they do by their number. A piece needs one of each where pieces divide it.
constant uint kGroup [[function_constant(1)]];
constant uint kIndexed [[function_constant(2)]];
constant uint kFloatScales [[function_constant(3)]];
constant uint kStoredLess [[function_constant(4)]];

struct Format {
  static constant constexpr uint kWords = kBits == 3 ? 3 : 1;
  static constant constexpr uint kSize = 32 * kWords / kBits;
  static constant constexpr uint kRun = kSize;
  static constant constexpr uint kStep = kSize;
  static constant constexpr uint kRows = 1;
  static constant constexpr bool kRowsTogether = true;
  Planes planes;
  constant WeightArgs* of;

  // Bits [index * kBits, (index + 1) * kBits) of words that lie `stride` apart.
  uint value_of(device const uint* words, uint stride, uint index) const {
    const uint shift = index * kBits % 32;
    device const uint* const word = words + ulong(index * kBits / 32) * stride;
    uint value = word[0] >> shift;
    if (32 % kBits != 0 && shift + kBits > 32) value |= word[stride] << (32 - shift);
    return value & ((1u << kBits) - 1);
  }

  // A file may change after its reader has checked the groups: they are held within the planes.
  uint group_of(uint column) const {
    return min(kIndexed ? ((device const uint*)planes.groups)[column] : column / kGroup, of->groups - 1);
  }

  float scale_of(uint row, uint group) const {
    const ulong place = ulong(group) * of->rows + row;
    return kFloatScales ? ((device const float*)planes.scales)[place]
                        : float(((device const half*)planes.scales)[place]);
  }

  int zero_of(uint row, uint group) const {
    const uint words = of->rows / 32 * kBits + of->rows % 32 * kBits / 32;  // of a group
    const uint stored = value_of((device const uint*)planes.zeros + ulong(group) * words, 1, row);
    return int((stored + kStoredLess) & ((1u << kBits) - 1));
  }

  void load(uint row, uint piece, thread float* w) const {
    device const uint* const words = (device const uint*)planes.codes + ulong(piece) * kWords * of->rows + row;
    const bool one_group = !kIndexed && kGroup % kSize == 0;
    float scale = 0.0f;
    int zero = 0;
    for (uint i = 0; i < kSize; ++i) {
      if (i == 0 || !one_group) {
        const uint group = group_of(kSize * piece + i);
        scale = scale_of(row, group);
        zero = zero_of(row, group);
      }
      w[i] = scale * float(int(value_of(words, of->rows, i)) - zero);
    }
  }
};

#include "matvec_rows.metal"
#include "matmul.metal"
#include "embed.metal"
