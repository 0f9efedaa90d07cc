// What each family of files calls the same matrix.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace llama2cpp {

// meta: Llama's own and llama2.c's names. hugging_face: transformers' names.
enum class Naming : std::uint8_t { meta, hugging_face };

enum class Part : std::uint8_t {
  tok_embeddings,
  attention_norm,
  wq,
  wk,
  wv,
  wo,
  ffn_norm,
  w1,
  w2,
  w3,
  norm,
  output,
};

inline constexpr Part kAllParts[] = {
    Part::tok_embeddings,
    Part::attention_norm,
    Part::wq,
    Part::wk,
    Part::wv,
    Part::wo,
    Part::ffn_norm,
    Part::w1,
    Part::w2,
    Part::w3,
    Part::norm,
    Part::output,
};

// Whether every layer has one of its own.
bool per_layer(Part part);

// weight_name(Naming::meta, Part::wq, 3) -> "layers.3.attention.wq.weight"
std::string weight_name(Naming naming, Part part, std::int64_t layer = 0);

// The family that a set of names belongs to. Names of neither family (stored rotary tables, say) are passed over.
// Throws std::invalid_argument for names of both families, and where no name is of either: then it says what was
// looked for.
Naming detect_naming(std::span<const std::string> names);

}  // namespace llama2cpp
