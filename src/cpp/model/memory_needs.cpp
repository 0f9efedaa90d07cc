// The message has both numbers, so that one sees how far off the request is.
#include "model/memory_needs.h"

#include <sstream>

#include "core/buffer.h"
#include "core/check.h"

namespace llama2cpp {

std::string gigabytes(double bytes) {
  std::ostringstream text;
  text.precision(bytes < 1e10 ? 3 : 0);
  text << std::fixed << bytes / 1e9 << " GB";
  return text.str();
}

void need_memory(double bytes, const std::string& what, const std::string& details, const std::string& advice) {
  const auto available = static_cast<double>(available_memory());
  if (bytes <= available) return;
  throw OutOfMemoryError(cat(what, " needs ", gigabytes(bytes), details.empty() ? "" : " (" + details + ")", ", and ",
                             gigabytes(available), " are available: ", advice));
}

}  // namespace llama2cpp
