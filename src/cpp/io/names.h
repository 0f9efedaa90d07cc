// What each family of files calls the same matrix.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace llama2cpp {

// meta: Llama's own and llama2.c's names. hugging_face: transformers' names. gguf: llama.cpp's names.
enum class Naming : std::uint8_t { meta, hugging_face, gguf };

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
  bq,
  bk,
  bv,
  bo,
  b1,
  b2,
  b3,
};

// What every Llama has, but for the output where it is tied.
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

// What some have: a vector that is added to what the matrix of the same letter gives.
inline constexpr Part kBiasParts[] = {
    Part::bq, Part::bk, Part::bv, Part::bo, Part::b1, Part::b2, Part::b3,
};

// Whether every layer has one of its own.
bool per_layer(Part part);

// weight_name(Naming::meta, Part::wq, 3) -> "layers.3.attention.wq.weight"
std::string weight_name(Naming naming, Part part, std::int64_t layer = 0);

struct NamedPart {
  Part part;
  std::int64_t layer;  // 0 for parts that no layer has
};

// The opposite of weight_name; nothing for a name that the family does not have.
std::optional<NamedPart> find_part(Naming naming, std::string_view name);

// The family that a set of names belongs to. Names of no family (stored rotary tables, say) are passed over. Throws
// std::invalid_argument for names of two families, and where no name is of one family alone: then it says what was
// looked for.
Naming detect_naming(std::span<const std::string> names);

}  // namespace llama2cpp
