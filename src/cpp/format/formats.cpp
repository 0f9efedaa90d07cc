// THE list of weight formats. One line each; nothing registers itself (a static library would drop it).
#include <bit>

#include "core/check.h"
#include "format/f32.h"
#include "format/int8_group.h"

namespace llama2cpp {

static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian and are used in place");

std::span<const Format* const> all_formats() {
  static constexpr const Format* kFormats[] = {
      &kF32,
      &kInt8Group,
  };
  return kFormats;
}

const Format& find_format(std::string_view name) {
  std::string known;
  for (const Format* format : all_formats()) {
    if (format->name == name) return *format;
    known += known.empty() ? "" : ", ";
    known += format->name;
  }
  throw FormatError(cat("unknown weight format '", name, "', expected one of: ", known));
}

}  // namespace llama2cpp
