#include "format/unit_row.h"

#include "core/half.h"
#include "format/format.h"

namespace llama2cpp {

void units_of_integers(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t block,
                       std::int64_t count, UnitRow* out) {
  const BlockFacts& facts = weight.format->blocks;
  const auto halves = static_cast<std::size_t>(facts.halves);
  IntegerBlock b;
  for (const UnitRow* const end = out + rows; out < end; ++row, ++out) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
      weight.format->integers(weight, row, block + static_cast<std::int64_t>(i), b);
      for (std::size_t k = 0; k < kBlockCols; ++k) {
        out->codes[i * kBlockCols + k] = static_cast<std::uint8_t>(b.q[k] + facts.offset);
      }
      out->d[i] = float_to_half(b.d);
      out->dm[i] = float_to_half(b.dm);
      out->zero[i] = static_cast<std::uint8_t>(b.zero);
      for (std::size_t h = 0; h < halves; ++h) {
        out->sub[i * halves + h] = static_cast<std::uint8_t>(b.sub[h]);
        out->m[i * halves + h] = static_cast<std::uint8_t>(b.m[h]);
      }
    }
  }
}

}  // namespace llama2cpp
