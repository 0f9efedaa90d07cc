#include "format/encode_rows.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "core/function_ref.h"
#include "format/int8_group.h"
#include "format/llm_int8.h"

namespace llama2cpp {
namespace {

constexpr float kLargest = 65504.0F;             // of f16, which scales are
constexpr std::int64_t kWorthAThread = 1 << 16;  // numbers; below it, starting one takes longer than it saves

// Throws for the first number that is not in [least, most]; NaN is in no range.
void check_range(std::span<const float> x, float least, float most, const char* what) {
  const auto bad = std::find_if(x.begin(), x.end(), [&](float v) { return !(v >= least && v <= most); });
  LLAMA2CPP_CHECK(bad == x.end(), what, " ", bad - x.begin(), " is ", *bad, ", expected a number from ", least, " to ",
                  most);
}

// Calls work(begin, end) for shares of the rows.
void share_rows(std::int64_t rows, ThreadPool& pool, FunctionRef<void(std::int64_t, std::int64_t)> work) {
  pool.run([&](int w, int workers) {
    const Range range = share(rows, w, workers);
    work(range.begin, range.end);
  });
}

std::int64_t rows_of(std::size_t size, std::int64_t row) {
  return row == 0 ? 0 : static_cast<std::int64_t>(size) / row;
}

}  // namespace

const Format& find_row_format(std::string_view name) {
  const Format& format = find_format(name);
  LLAMA2CPP_CHECK(format.group != 0, "format '", name, "' has no rows of its own");
  return format;
}

std::int64_t checked_row_bytes(const Format& format, std::int64_t columns) {
  LLAMA2CPP_CHECK(columns >= 0 && columns % format.group == 0, "rows have ", columns, " columns, which ", format.name,
                  "'s group of ", format.group, " does not divide");
  return row_bytes(format, columns);
}

std::int64_t checked_row_columns(const Format& format, std::int64_t bytes) {
  LLAMA2CPP_CHECK(bytes % format.group_bytes == 0, "rows have ", bytes, " bytes, expected whole groups of ",
                  format.group_bytes);
  return bytes / format.group_bytes * format.group;
}

int threads_for_rows(std::int64_t rows, std::int64_t count, std::optional<int> wanted) {
  const std::int64_t worth = std::max<std::int64_t>(1, count / kWorthAThread);
  return static_cast<int>(std::clamp<std::int64_t>(std::min(worth, rows), 1, checked_threads(wanted)));
}

void encode_rows(const Format& format, std::span<const float> from, std::int64_t columns,
                 std::span<const float> importance, std::byte* to, ThreadPool& pool) {
  LLAMA2CPP_CHECK(format.encode != nullptr, "format '", format.name, "' can be read and not be written");
  const std::int64_t bytes = checked_row_bytes(format, columns);
  if (format.quantized) check_range(from, -kLargest, kLargest, "number");
  if (!importance.empty()) check_range(importance, 0.0F, 1e12F, "importance");
  const float* const weights = importance.empty() ? nullptr : importance.data();
  share_rows(rows_of(from.size(), columns), pool, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      format.encode(from.data() + r * columns, weights, columns, to + r * bytes);
    }
  });
}

void decode_rows(const Format& format, std::span<const std::byte> from, std::int64_t columns, float* to,
                 ThreadPool& pool) {
  Weight weight;
  weight.format = &format;
  weight.cols = columns;
  weight.group = format.group;
  weight.planes[0].data = from.data();
  weight.planes[0].bytes = from.size();
  weight.planes[0].row_bytes = row_bytes(format, columns);
  weight.rows = rows_of(from.size(), weight.planes[0].row_bytes);
  share_rows(weight.rows, pool, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) weight.decode_row(r, to + r * columns);
  });
}

void encode_int8_groups(std::span<const float> from, std::int64_t columns, std::int64_t group, std::int8_t* q,
                        float* scales, ThreadPool& pool) {
  LLAMA2CPP_CHECK(group >= 1 && columns % group == 0, "group is ", group, ", expected a divisor of ", columns);
  LLAMA2CPP_CHECK(group <= kMostInt8Group, "group is ", group, ", expected at most ", kMostInt8Group);
  constexpr float kMost = std::numeric_limits<float>::max();
  check_range(from, -kMost, kMost, "number");
  share_rows(rows_of(from.size(), columns), pool, [&](std::int64_t begin, std::int64_t end) {
    encode_int8_group(from.data() + begin * columns, (end - begin) * columns, group, q + begin * columns,
                      scales + begin * (columns / group));
  });
}

void encode_llm_int8_rows(std::span<const float> from, std::int64_t columns, std::int8_t* q, float* largest,
                          ThreadPool& pool) {
  check_range(from, -kLargest, kLargest, "number");
  share_rows(rows_of(from.size(), columns), pool, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      largest[r] = encode_llm_int8(from.data() + r * columns, columns, q + r * columns);
    }
  });
}

}  // namespace llama2cpp
