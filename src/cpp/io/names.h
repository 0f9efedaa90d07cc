// What each family of files calls the same weight. The names are in core/parts.inc.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/parts.h"

namespace llama2cpp {

inline constexpr Naming kNamings[] = {Naming::meta, Naming::hugging_face, Naming::gguf};

// weight_name(Naming::meta, Part::wq, 3) -> "layers.3.attention.wq.weight"
// weight_name(Naming::meta, Part::e1, 3, 7) -> "layers.3.feed_forward.experts.7.w1.weight"
std::string weight_name(Naming naming, Part part, std::int64_t layer = 0, std::int64_t expert = 0);

// weight_pattern(Naming::meta, Part::wq) -> "layers.{}.attention.wq.weight"; a second {} is the expert
std::string weight_pattern(Naming naming, Part part);

struct NamedPart {
  Part part;
  std::int64_t layer;       // 0 for parts that no layer has
  std::int64_t expert = 0;  // 0 for parts that no expert has
};

// The opposite of weight_name; nothing for a name that the family does not have.
std::optional<NamedPart> find_part(Naming naming, std::string_view name);

// The same, and nothing for a layer or an expert that the config does not have, nor for an MLP of the other kind than its.
std::optional<NamedPart> find_part(Naming naming, std::string_view name, const Config& config);

// The family that a set of names belongs to. Names of no family (stored rotary tables, say) are passed over. Throws
// std::invalid_argument for names of two families, and where no name is of one family alone: then it says what was
// looked for.
Naming detect_naming(std::span<const std::string> names);

}  // namespace llama2cpp
