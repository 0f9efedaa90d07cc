// Writing GPTQ's planes (format/gptq.h has their layout): column after column is rounded, and what that loses is made up
// for in the columns that are still to come. Frantar et al., GPTQ (2022), algorithm 1.
#pragma once

#include <cstdint>
#include <span>

#include "core/thread_pool.h"

namespace llama2cpp {

struct GptqGrid {
  int bits = 4;              // 2, 3, 4 or 8
  std::int64_t group = 128;  // columns that share a scale and a zero; the last group may have fewer
  bool symmetric = true;     // the zero is 2^(bits - 1); else it follows each group's range
  bool search = true;        // of some ranges, the one with the least error; else the whole range of a group
};

// How many groups `cols` columns have.
inline std::int64_t gptq_groups(std::int64_t cols, std::int64_t group) { return (cols - 1) / group + 1; }

// What is made of a weight [rows, cols]. Columns are rounded in an order, and those that follow each other share a group.
struct GptqCodes {
  std::span<std::uint8_t> q;        // [rows, cols], in the weight's order of columns
  std::span<std::uint16_t> scales;  // [groups, rows] f16
  std::span<std::uint8_t> zeros;    // [groups, rows]
  std::span<float> values;          // [rows, cols]: scale * (q - zero)
  std::span<double> losses;         // [rows]: e H e^T of a row's errors e, in the order's columns
};

// weight [rows, cols], finite. order [cols]: the column that is rounded at each place. u [cols, cols] is gptq_factor's, of
// H in that order; empty: nothing is made up for, which is rounding to the nearest. A row's numbers depend on that row and u
// only.
void gptq_encode(std::span<const float> weight, std::int64_t cols, std::span<const std::int32_t> order,
                 std::span<const double> u, const GptqGrid& grid, const GptqCodes& out, ThreadPool& pool);

// A stream of `count` values of `bits` bits, which lie `from_stride` apart, to 32-bit words that lie `to_stride` apart and
// are zeros yet. count * bits fills whole words.
void gptq_pack(const std::uint8_t* values, std::int64_t count, std::int64_t from_stride, int bits, std::uint32_t* words,
               std::int64_t to_stride);

}  // namespace llama2cpp
