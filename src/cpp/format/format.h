// How a parameter matrix lies in a file. A Format is one row of facts; the kernels and readers are generic over it.
// Adding a format: a new header beside this one, and one line in formats.cpp.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/buffer.h"
#include "core/check.h"
#include "format/block_layout.h"

namespace llama2cpp {

struct Weight;
struct UnitRow;

// 32 columns of a row as whole numbers with their scales: weight k is (d * sub[h]) * q[k] + dm * m[h], where h = k / 16.
// d * sub and dm * m are exact in f32 for every format here. Without a minimum there is no second term. In formats with zero
// points it is d * (q[k] - zero).
struct IntegerBlock {
  std::array<std::int8_t, 32> q;
  std::array<std::int32_t, 2> sub{1, 1};
  std::array<std::int32_t, 2> m{0, 0};
  float d = 0.0F;
  float dm = 0.0F;
  std::int32_t zero = 0;
};

// What all IntegerBlocks of a format have in common.
struct BlockFacts {
  int bits = 0;             // q + offset is in [0, 2^bits)
  int offset = 0;           //
  int halves = 1;           // 2 where sub and m differ between columns 0-15 and 16-31
  bool sub_scales = false;  // sub is not always 1: d and dm then belong to 256 columns
  bool minimum = false;     // dm is used
  bool zeros = false;       // zero is used, and zero + offset is in [0, 2^bits)
};

struct Format {
  std::string_view name;
  std::int64_t group;        // weights that share a scale; 1 for floats, 0 where each Weight says its own
  std::int64_t group_bytes;  // bytes of one group in plane 0
  bool quantized;

  // Writes columns [begin, begin + count) of one row as f32. `begin` and `count` are multiples of the group, or of 32 where
  // there are integers; a format without a group of its own takes any range.
  void (*decode)(const Weight& weight, std::int64_t row, std::int64_t begin, std::int64_t count, float* out);
  // The opposite, for export: `count` values, whole groups of them, to plane 0. `importance` [count] weighs the errors
  // in formats of 2 to 6 bits; null, or for other formats, all count alike. Values are finite, except for floats. Null where this project does not write the format.
  void (*encode)(const float* values, const float* importance, std::int64_t count, std::byte* out);

  // Columns [32 * block, 32 * block + 32) of one row, in the weight's order. Null where columns do not come in blocks of 32
  // whole numbers; not to be called where in_blocks() is false.
  void (*integers)(const Weight& weight, std::int64_t row, std::int64_t block, IntegerBlock& out) = nullptr;
  BlockFacts blocks{};  // where there are integers
  // The same numbers faster, for packing: of some rows, `count` blocks (at most 8) from `block` (a multiple of 8) on. Null:
  // they are made of integers.                                                                               -> out [rows]
  void (*units)(const Weight& weight, std::int64_t row, std::int64_t rows, std::int64_t block, std::int64_t count,
                UnitRow* out) = nullptr;

  // Where weights lie in panels instead of rows (panel_formats.h): the format whose numbers they hold, and how.
  const Format* in_panels_of = nullptr;
  PanelForm form = PanelForm::f32;
};

// Bytes of `columns` numbers of a row in plane 0, which are whole groups. For formats that have a group of their own.
inline std::int64_t row_bytes(const Format& format, std::int64_t columns) {
  return columns / format.group * format.group_bytes;
}

// One array of a weight's file form: float data, GGUF blocks, int8 values, scales, zero points ...
struct Plane {
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
  std::int64_t row_bytes = 0;  // from one row to the next
  Buffer owner;                // keeps `data` alive
};

// One parameter matrix [rows, cols] as the file holds it, and, once a backend has packed it, in the layout that its
// kernels read. Vectors (norm gains) are matrices of one row.
struct Weight {
  std::string name;  // as the file calls it
  const Format* format = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t group = 1;  // weights that share a scale
  // Whether matmul rounds its input to int8, group by group, and multiplies integers; else it multiplies floats by the
  // decoded weights. Only for quantized formats; the model decides.
  bool int8_input = false;
  // Whether matmul rounds its input to bf16, and multiplies pairs of bf16. Only for bf16 and f16; the model decides.
  bool bf16_input = false;
  // llm_int8: where an input is at least this large, its column is multiplied in float; 0: nowhere, but for fixed columns.
  float outlier_threshold = 0.0F;
  std::array<Plane, 4> planes;
  Buffer order;   // i32 [cols]: the column that matmul takes at each place; empty: as they lie
  Buffer panels;  // the backend's packed copy, empty until then; or the file's own, where that holds panels

  void decode_row(std::int64_t row, float* out) const { format->decode(*this, row, 0, cols, out); }
};

// THE list of formats.
std::span<const Format* const> all_formats();

// Throws FormatError with the names that exist.
const Format& find_format(std::string_view name);

// Whether a weight's columns, in its order, are blocks of 32 whole numbers with one scale each.
inline bool in_blocks(const Weight& weight) {
  if (weight.format->integers == nullptr) return false;
  if (weight.format->group > 0) return true;
  if (weight.planes[1].row_bytes != 0) return false;  // GPTQ's scales are no halves
  const bool groups_together = weight.planes[3].data == nullptr || weight.order;
  return groups_together && weight.cols % 32 == 0 && (weight.group % 32 == 0 || weight.group >= weight.cols);
}

inline std::string shape_text(const Weight& weight) { return cat("[", weight.rows, ", ", weight.cols, "]"); }

}  // namespace llama2cpp
