// What files say of LLM.int8()'s outliers, checked.
#pragma once

#include <string>

#include "format/format.h"
#include "io/json.h"

namespace llama2cpp {

// The magnitude from which on an input is an outlier: finite, 0 or more. Throws FormatError for anything else.
float read_outlier_threshold(const Json& number);

// A plane of fixed columns: i32 [n], ascending, below `cols`; empty for none. It is a copy, since they are indices, and a
// mapped file may change after they were looked at. Throws FormatError, which begins with `what`, for others.
Plane read_outlier_columns(const std::string& what, const std::byte* columns, std::int64_t n, std::int64_t cols);

}  // namespace llama2cpp
