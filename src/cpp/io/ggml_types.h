// The types that GGUF files number, and which of our formats each of them is.
#pragma once

#include <cstdint>
#include <string_view>

namespace llama2cpp {

struct GgmlType {
  std::uint32_t number;
  std::string_view name;    // as ggml spells it
  std::string_view format;  // in format/formats.cpp; empty: a type that we do not read
};

// Null for a number that ggml does not have.
const GgmlType* find_ggml_type(std::uint32_t number);

}  // namespace llama2cpp
