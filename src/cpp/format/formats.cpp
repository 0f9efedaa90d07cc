// THE list of weight formats. One line each; nothing registers itself (a static library would drop it).
#include <bit>

#include "core/check.h"
#include "format/bf16.h"
#include "format/f16.h"
#include "format/f32.h"
#include "format/f64.h"
#include "format/gptq.h"
#include "format/int8_group.h"
#include "format/iq4_nl.h"
#include "format/iq4_xs.h"
#include "format/llm_int8.h"
#include "format/mxfp4.h"
#include "format/q2_k.h"
#include "format/q3_k.h"
#include "format/q4_0.h"
#include "format/q4_1.h"
#include "format/q4_k.h"
#include "format/q5_0.h"
#include "format/q5_1.h"
#include "format/q5_k.h"
#include "format/q6_k.h"
#include "format/q8_0.h"

namespace llama2cpp {

static_assert(std::endian::native == std::endian::little, "checkpoints are little-endian and are used in place");

std::span<const Format* const> all_formats() {
  static constexpr const Format* kFormats[] = {
      &kF32,     &kInt8Group, &kF16,     &kBF16,    &kQ8_0,    &kQ4_0,  &kQ4_1,   &kQ5_0,   &kQ5_1,
      &kQ2_K,    &kQ3_K,      &kQ4_K,    &kQ5_K,    &kQ6_K,    &kGptq2, &kGptq3,  &kGptq4,  &kGptq8,
      &kGptq2V2, &kGptq3V2,   &kGptq4V2, &kGptq8V2, &kLlmInt8, &kF64,   &kIQ4_NL, &kIQ4_XS, &kMXFP4,
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
