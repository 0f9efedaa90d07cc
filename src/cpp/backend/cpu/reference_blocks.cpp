// The specification of block formats' arithmetic, in plain loops. A weight is D * q + M with whole q; the input is
// s * x with whole x, rounded in blocks of 32. In the order of columns, for each block (each half of it, where D and M
// differ between the halves), with exact sums over its columns:
//
//   p = fma(round(D * s), float(sum(q * x)), p)
//   p = fma(M, round(s * float(sum(x))), p)          where there is a minimum
//
// With zero points, which are whole, the one sum is sum(q * x) - zero * sum(x): sum((q - zero) * x).
//
// D = d * sub and M = dm * m are exact: 11 bits of an f16 times at most 8.
#include "backend/cpu/reference_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "core/half.h"

namespace llama2cpp {
namespace {

float half_of(const std::uint8_t* p) {
  std::uint16_t half = 0;
  std::memcpy(&half, p, sizeof(half));
  return half_to_float(half);
}

float float_of(const std::uint8_t* p) {
  float value = 0.0F;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// Where the parts of a unit of `blocks` blocks are, as format/block_layout.h says.
struct Unit {
  BlockLayout layout;
  const std::uint8_t* begin;
  std::int64_t blocks;

  std::int64_t fields() const { return layout.minimum ? 2 : 1; }
  std::int64_t sub_bytes() const { return fields() * layout.halves * 16; }  // of one block
  std::int64_t header() const {
    if (layout.zeros) return (((blocks - 1) / (1 << layout.share) + 1) * 48 + 63) / 64 * 64;
    const std::int64_t bytes = layout.sub_scales ? fields() * 32 + blocks * sub_bytes() : blocks * fields() * 32;
    return (bytes + 63) / 64 * 64;
  }
  std::int64_t bytes() const { return header() + blocks * layout.bits * 64; }

  int zero(std::int64_t block, std::int64_t row) const {
    return layout.zeros ? static_cast<std::int8_t>(begin[block / (1 << layout.share) * 48 + 32 + row]) : 0;
  }

  // field 0: D, field 1: M
  float scale(std::int64_t block, std::int64_t half, std::int64_t row, std::int64_t field) const {
    if (layout.zeros) return half_of(begin + block / (1 << layout.share) * 48 + row * 2);
    if (!layout.sub_scales) return half_of(begin + (block * fields() + field) * 32 + row * 2);
    const std::uint8_t* sub = begin + fields() * 32 + block * sub_bytes() + (field * layout.halves + half) * 16 + row;
    return half_of(begin + field * 32 + row * 2) * static_cast<float>(static_cast<std::int8_t>(*sub));
  }

  // q + offset
  int weight(std::int64_t block, std::int64_t column, std::int64_t row) const {
    const std::uint8_t* plane = begin + header() + block * layout.bits * 64;
    int value = 0;
    int have = 0;  // bits
    for (const int width : {8, 4, 2, 1}) {
      if ((layout.bits & width) == 0) continue;
      const std::int64_t bit = column / 4 * width;
      const int byte = plane[bit / 8 * 64 + row * 4 + column % 4];
      value |= (byte >> bit % 8 & ((1 << width) - 1)) << have;
      have += width;
      plane += width * 64;
    }
    return value;
  }
};

// The formula for one row and token. weight(k) is q + offset; scale(block, half, field) is D or M; zero(block) is 0
// where there are none.
template <class WeightAt, class ScaleAt, class ZeroAt>
float sum_blocks(const BlockCall& b, std::int64_t first_block, std::int64_t blocks, std::int64_t token, float p,
                 WeightAt weight, ScaleAt scale, ZeroAt zero) {
  const std::int64_t n = b.n_tokens;
  const std::int64_t cols = kBlockCols / b.layout.halves;
  for (std::int64_t i = 0; i < blocks; ++i) {
    const std::int64_t block = first_block + i;
    const float s = b.input.scales[block * n + token];
    for (std::int64_t half = 0; half < b.layout.halves; ++half) {
      std::int32_t dot = 0;
      std::int32_t sum = 0;
      for (std::int64_t k = half * cols; k < (half + 1) * cols; ++k) {
        const int x = b.input.x[(block * n + token) * kBlockCols + k];
        dot += (weight(i, k) - b.layout.offset) * x;
        sum += x;
      }
      dot -= zero(i) * sum;
      const float factor = scale(i, half, 0) * s;
      p = std::fma(factor, static_cast<float>(dot), p);
      if (b.layout.minimum) {
        const float scaled = s * static_cast<float>(sum);
        p = std::fma(scale(i, half, 1), scaled, p);
      }
    }
  }
  return p;
}

// Calls of(panel, row, token, p) -> p for each output.
template <class Of>
void each_output(const BlockCall& b, Of of) {
  for (std::int64_t token = 0; token < b.n_tokens; ++token) {
    for (std::int64_t panel = 0; panel < b.n_panels; ++panel) {
      const std::int64_t rows = panel + 1 == b.n_panels ? b.last_rows : kPanelRows;
      for (std::int64_t row = 0; row < rows; ++row) {
        float& out = b.out[token * b.out_stride + panel * kPanelRows + row];
        out = of(b.panels + panel * b.panel_stride, row, token, b.first ? 0.0F : out);
      }
    }
  }
}

}  // namespace

void reference_matmul_blocks(const BlockCall& b) {
  each_output(b, [&](const std::uint8_t* panel, std::int64_t row, std::int64_t token, float p) {
    for (std::int64_t block = 0; block < b.blocks; block += kUnitBlocks) {
      const Unit unit{b.layout, panel, b.blocks - block < kUnitBlocks ? b.blocks - block : kUnitBlocks};
      p = sum_blocks(
          b, block, unit.blocks, token, p, [&](std::int64_t i, std::int64_t k) { return unit.weight(i, k, row); },
          [&](std::int64_t i, std::int64_t half, std::int64_t field) { return unit.scale(i, half, row, field); },
          [&](std::int64_t i) { return unit.zero(i, row); });
      panel += unit.bytes();
    }
    return p;
  });
}

void reference_matmul_open(const BlockCall& b) {
  each_output(b, [&](const std::uint8_t* open, std::int64_t row, std::int64_t token, float p) {
    for (std::int64_t block = 0; block < b.blocks; block += kUnitBlocks, open += kUnpackedBytes) {
      p = sum_blocks(
          b, block, std::min(b.blocks - block, kUnitBlocks), token, p,
          [&](std::int64_t i, std::int64_t k) { return int{open[((i * 8 + k / 4) * 16 + row) * 4 + k % 4]}; },
          [&](std::int64_t i, std::int64_t half, std::int64_t field) {
            return float_of(open + (field == 0 ? kUnpackedScales : kUnpackedMinimums) +
                            ((i * b.layout.halves + half) * 16 + row) * 4);
          },
          [&](std::int64_t i) {
            return b.layout.zeros ? static_cast<int>(float_of(open + kUnpackedMinimums + (i * 16 + row) * 4)) : 0;
          });
    }
    return p;
  });
}

// The weights that reference_widen_blocks gives, times floats: blocks of 256 k, summed like any float weights.
void reference_matmul_wide(const BlockCall& b) {
  each_output(b, [&](const std::uint8_t* panel, std::int64_t row, std::int64_t token, float sum) {
    const float* x = b.input.f32 + token;
    for (std::int64_t block = 0; block < b.blocks; block += kUnitBlocks) {
      const Unit unit{b.layout, panel, b.blocks - block < kUnitBlocks ? b.blocks - block : kUnitBlocks};
      float p = 0.0F;
      for (std::int64_t k = 0; k < unit.blocks * kBlockCols; ++k, x += b.n_tokens) {
        const std::int64_t i = k / kBlockCols;
        const std::int64_t half = k * b.layout.halves / kBlockCols % b.layout.halves;
        const int q = unit.weight(i, k % kBlockCols, row) - b.layout.offset - unit.zero(i, row);
        float w = unit.scale(i, half, row, 0) * static_cast<float>(q);
        if (b.layout.minimum) w = w + unit.scale(i, half, row, 1);
        p = std::fma(w, *x, p);
      }
      sum = sum + p;
      panel += unit.bytes();
    }
    return sum;
  });
}

void reference_unpack_blocks(const BlockLayout& layout, const std::uint8_t* unit, std::int64_t blocks,
                             std::uint8_t* open) {
  const Unit from{layout, unit, blocks};
  for (std::int64_t i = 0; i < blocks; ++i) {
    for (std::int64_t row = 0; row < kPanelRows; ++row) {
      for (std::int64_t k = 0; k < kBlockCols; ++k) {
        open[((i * 8 + k / 4) * 16 + row) * 4 + k % 4] = static_cast<std::uint8_t>(from.weight(i, k, row));
      }
      for (std::int64_t half = 0; half < layout.halves; ++half) {
        const std::int64_t at = ((i * layout.halves + half) * 16 + row) * 4;
        const float scale = from.scale(i, half, row, 0);
        std::memcpy(open + kUnpackedScales + at, &scale, sizeof(scale));
        if (!layout.minimum && !layout.zeros) continue;
        const float minimum = layout.zeros ? static_cast<float>(from.zero(i, row)) : from.scale(i, half, row, 1);
        std::memcpy(open + kUnpackedMinimums + at, &minimum, sizeof(minimum));
      }
    }
  }
}

// The values that Format::decode gives: a product, and a sum where there is a minimum, each rounded. A zero point is
// subtracted before, which is exact.
void reference_widen_blocks(const BlockLayout& layout, const std::uint8_t* open, std::int64_t blocks, float* out) {
  for (std::int64_t k = 0; k < blocks * kBlockCols; ++k) {
    const std::int64_t part = k * layout.halves / kBlockCols;  // block * halves + half
    for (std::int64_t row = 0; row < kPanelRows; ++row) {
      const int q = int{open[(k / 4 * 16 + row) * 4 + k % 4]} - layout.offset;
      const float second = float_of(open + kUnpackedMinimums + (part * 16 + row) * 4);
      const float whole = static_cast<float>(q) - (layout.zeros ? second : 0.0F);
      const float value = float_of(open + kUnpackedScales + (part * 16 + row) * 4) * whole;
      out[k * kPanelRows + row] = layout.minimum ? value + second : value;
    }
  }
}

// A block of zeros, or so small that its scale is no number above 0, becomes zeros. One with an infinity or a NaN
// becomes zeros with the scale NaN, so that the output shows it.
void reference_quantize_blocks(const BlockRounding& row) {
  const std::int64_t n = row.n_tokens;
  const std::int64_t cols = kBlockCols / row.halves;
  const float* x = row.x;
  for (std::int64_t block = 0; block < row.blocks; ++block, x += kBlockCols) {
    float largest = 0.0F;
    bool finite = true;
    for (std::int64_t i = 0; i < kBlockCols; ++i) {
      if (!std::isfinite(x[i])) finite = false;
      if (std::fabs(x[i]) > largest) largest = std::fabs(x[i]);
    }
    const float scale = finite ? largest / 127.0F : std::numeric_limits<float>::quiet_NaN();
    row.scales[block * n] = scale;
    for (std::int64_t half = 0; half < row.halves; ++half) {
      std::int32_t sum = 0;
      for (std::int64_t i = half * cols; i < (half + 1) * cols; ++i) {
        std::int8_t q = 0;
        if (finite && scale != 0.0F) {
          // A scale that is a denormal is coarse: then the quotient can pass 127.
          const float quotient = x[i] / scale;
          const float within = quotient > 127.0F ? 127.0F : quotient < -127.0F ? -127.0F : quotient;
          q = static_cast<std::int8_t>(std::nearbyint(within));  // the mode is to nearest even, as a lease sets it
        }
        row.q[block * n * kBlockCols + i] = q;
        sum += q;
      }
      row.starts[(block * row.halves + half) * n] = -sum;
      row.sums[(block * row.halves + half) * n] = scale * static_cast<float>(sum);
    }
  }
}

}  // namespace llama2cpp
