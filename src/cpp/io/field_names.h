// What a file calls the fields of a Config, so that an error about a field names what stands in the file.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/config.h"

namespace llama2cpp {

struct FieldName {
  std::string_view field;  // Config's or RopeScaling's
  std::string key;         // the file's; empty: it has none
};

// config.validate(), whose FormatError then says also what the file calls the fields that it speaks of.
void validate(const Config& config, std::span<const FieldName> names);

}  // namespace llama2cpp
