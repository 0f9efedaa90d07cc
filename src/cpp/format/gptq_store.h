// A weight as GPTQ's files have it: encoded (gptq_encode.h) and packed into the planes of gptq.h.
#pragma once

#include <cstdint>
#include <span>

#include "core/thread_pool.h"
#include "format/gptq_encode.h"

namespace llama2cpp {

// How large the planes of a weight [rows, cols] are.
struct GptqSizes {
  std::int64_t group;         // columns that share a scale: not more than there are
  std::int64_t groups;        // how many of them
  std::int64_t weight_words;  // 32-bit words of one row's values
  std::int64_t zero_words;    // of one group's zeros
};

// group -1: one for all columns. Throws std::invalid_argument for bits and groups that are none, and where rows or columns
// fill no whole words.
GptqSizes gptq_sizes(std::int64_t rows, std::int64_t cols, int bits, std::int64_t group);

struct GptqPlanes {
  std::span<std::uint32_t> qweight;  // [weight_words, rows]
  std::span<std::uint32_t> qzeros;   // [groups, zero_words]
  std::span<std::uint16_t> scales;   // [groups, rows] f16
  std::span<std::int32_t> g_idx;     // [cols]
  std::span<float> values;           // [rows, cols]: what they stand for
};

// weight [rows, cols], order [cols], u [cols, cols] or empty, as gptq_encode takes them; grid.group is gptq_sizes'. `version`
// is 1, which stores zero - 1, or 2, which stores the zero. Returns the sum of the rows' losses. Throws
// std::invalid_argument for an order that has a column twice or not at all, and for numbers that f16's scales cannot reach.
double gptq_store(std::span<const float> weight, std::span<const std::int32_t> order, std::span<const double> u,
                  const GptqGrid& grid, int version, const GptqPlanes& planes, ThreadPool& pool);

}  // namespace llama2cpp
