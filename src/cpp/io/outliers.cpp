#include "io/outliers.h"

#include <cmath>
#include <cstring>

#include "core/check.h"

namespace llama2cpp {

float read_outlier_threshold(const Json& number) {
  const auto value = static_cast<float>(number.number());
  if (!(value >= 0.0F && std::isfinite(value))) number.fail(cat(value, ", expected a number of 0 or more"));
  return value;
}

Plane read_outlier_columns(const std::string& what, const std::byte* columns, std::int64_t n, std::int64_t cols) {
  if (n == 0) return {};
  const auto bytes = static_cast<std::size_t>(n) * sizeof(std::int32_t);
  const Buffer copy = Buffer::heap(bytes);
  std::memcpy(copy.data(), columns, bytes);
  std::int64_t least = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    std::int32_t column = 0;
    std::memcpy(&column, copy.data() + i * 4, sizeof(column));
    if (column < least || column >= cols) {
      throw FormatError(
          cat(what, ": number ", i, " is ", column, ", expected columns of ", cols, " in ascending order"));
    }
    least = std::int64_t{column} + 1;
  }
  return {copy.data(), bytes, 0, copy};
}

}  // namespace llama2cpp
