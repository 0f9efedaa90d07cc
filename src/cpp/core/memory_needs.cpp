// The message has both numbers, so that one sees how far off the request is.
#include "core/memory_needs.h"

#include "core/check.h"

namespace llama2cpp {

std::string gigabytes(double bytes) { return fixed_point(bytes / 1e9, bytes < 1e10 ? 3 : 0) + " GB"; }

void need_memory(double bytes, const std::string& what, const std::string& details, const std::string& advice,
                 std::size_t available) {
  if (bytes <= static_cast<double>(available)) return;
  throw OutOfMemoryError(cat(what, " needs ", gigabytes(bytes), details.empty() ? "" : " (" + details + ")", ", and ",
                             gigabytes(static_cast<double>(available)), " are available: ", advice));
}

void throw_no_memory(std::size_t bytes) {
  throw OutOfMemoryError(cat("the system gave no memory of ", gigabytes(static_cast<double>(bytes)), ", and ",
                             gigabytes(static_cast<double>(available_memory())), " are available"));
}

}  // namespace llama2cpp
