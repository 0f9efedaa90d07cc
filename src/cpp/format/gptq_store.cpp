#include "format/gptq_store.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "core/check.h"

namespace llama2cpp {
namespace {

void check_order(std::span<const std::int32_t> order) {
  const auto cols = static_cast<std::int64_t>(order.size());
  std::vector<bool> seen(order.size());
  for (const std::int32_t column : order) {
    LLAMA2CPP_CHECK(column >= 0 && column < cols && !seen[static_cast<std::size_t>(column)], "order has ", column,
                    ", expected each of 0 to ", cols - 1, " once");
    seen[static_cast<std::size_t>(column)] = true;
  }
}

void check_numbers(std::span<const float> weight) {
  constexpr float kLargest = 65504.0F;  // of f16, which scales are
  for (const float value : weight) {
    LLAMA2CPP_CHECK(std::fabs(value) <= kLargest, "a number is ", value, ", expected a magnitude of up to ", kLargest);
  }
}

}  // namespace

GptqSizes gptq_sizes(std::int64_t rows, std::int64_t cols, int bits, std::int64_t group) {
  LLAMA2CPP_CHECK(bits == 2 || bits == 3 || bits == 4 || bits == 8, "bits is ", bits, ", expected 2, 3, 4 or 8");
  for (const std::int64_t size : {rows, cols}) {
    LLAMA2CPP_CHECK(size >= 1 && size * bits % 32 == 0, "the weight is [", rows, ", ", cols, "], and ", size,
                    " values of ", bits, " bits fill no whole 32-bit words");
  }
  LLAMA2CPP_CHECK(group == -1 || group >= 1, "group is ", group, ", expected 1 or more, or -1 for all columns");
  const std::int64_t own = group == -1 ? cols : std::min(group, cols);
  return {own, gptq_groups(cols, own), cols * bits / 32, rows * bits / 32};
}

double gptq_store(std::span<const float> weight, std::span<const std::int32_t> order, std::span<const double> u,
                  const GptqGrid& grid, int version, const GptqPlanes& planes, ThreadPool& pool) {
  LLAMA2CPP_CHECK(version == 1 || version == 2, "version is ", version, ", expected 1 or 2");
  check_order(order);
  check_numbers(weight);
  const auto cols = static_cast<std::int64_t>(order.size());
  const std::int64_t rows = static_cast<std::int64_t>(weight.size()) / cols;
  const GptqSizes sizes = gptq_sizes(rows, cols, grid.bits, grid.group);
  std::vector<std::uint8_t> q(weight.size());
  std::vector<std::uint8_t> zeros(static_cast<std::size_t>(sizes.groups * rows));
  std::vector<double> losses(static_cast<std::size_t>(rows));
  gptq_encode(weight, cols, order, u, grid, {q, planes.scales, zeros, planes.values, losses}, pool);

  for (std::int64_t place = 0; place < cols; ++place) {
    const auto column = static_cast<std::size_t>(order[static_cast<std::size_t>(place)]);
    planes.g_idx[column] = static_cast<std::int32_t>(place / grid.group);
  }
  std::fill(planes.qweight.begin(), planes.qweight.end(), 0U);
  std::fill(planes.qzeros.begin(), planes.qzeros.end(), 0U);
  for (std::int64_t r = 0; r < rows; ++r) {
    gptq_pack(q.data() + r * cols, cols, 1, grid.bits, planes.qweight.data() + r, rows);
  }
  const int stored_less = version == 1 ? 1 : 0;
  for (std::uint8_t& zero : zeros) zero = static_cast<std::uint8_t>((zero - stored_less) & ((1 << grid.bits) - 1));
  for (std::int64_t g = 0; g < sizes.groups; ++g) {
    gptq_pack(zeros.data() + g * rows, rows, 1, grid.bits, planes.qzeros.data() + g * sizes.zero_words, 1);
  }
  double loss = 0.0;
  for (const double of_row : losses) loss += of_row;
  return loss;
}

}  // namespace llama2cpp
