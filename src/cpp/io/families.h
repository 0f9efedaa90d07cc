// The families of models that this version computes, a row for each: what their files call themselves, what they leave out,
// which settings may change what a layer computes, and which weights they have beyond a Llama's. The readers of config.json
// and of GGUF's metadata, and their writers, know families from here only. What a row makes of a Config is then data for the
// forward (model/layer_plan.h).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/config.h"
#include "core/parts.h"

namespace llama2cpp {

// A setting that makes a model compute something else, unless it is missing, null, or `neutral`.
struct Switch {
  std::string_view hugging_face;  // in config.json; empty: it has none
  std::string_view gguf;          // in the metadata, behind the architecture's prefix; empty: it has none
  double neutral;
};

std::span<const Switch> switches();

struct Family {
  std::string_view model_type;        // of config.json
  std::string_view architectures[3];  // what config.json may say; the last is the model without its output matrix
  std::string_view
      gguf;  // general.architecture, and the prefix of the other keys; empty: its files name another family
  RopeStyle hugging_face_rope_style;
  RopeStyle gguf_rope_style;
  std::string_view computes[2];  // switches of config.json that need not be neutral

  // transformers' defaults, for what config.json leaves out.
  std::int64_t seq_len;
  std::optional<std::int64_t> n_kv_heads;  // nothing: as many as query heads
  double norm_eps;
  double rope_theta;
  bool has_window;
  std::int64_t sliding_window;  // where it has one; 0: none

  // Optional parts, biases aside, that all its models have. Those of other families have them not.
  std::span<const Part> parts = {};

  bool computes_switch(std::string_view hugging_face) const;

  // Whether its models may have an optional part.
  bool may_have(Part part) const;
};

// The setting of config.json that says whether a half of a layer has biases.
constexpr std::string_view bias_switch(Scope half) { return half == Scope::mlp ? "mlp_bias" : "attention_bias"; }
constexpr std::string_view bias_switch(Part part) { return bias_switch(facts(part).scope); }

// Null where no family has the name.
const Family* find_hugging_face_family(std::string_view model_type);
const Family* find_gguf_family(std::string_view architecture);

// The first family whose files can hold a model with these optional parts. Throws std::invalid_argument, with what the model
// has, where there is none.
const Family& hugging_face_family_of(const Config& config, std::span<const Part> parts);
const Family& gguf_family_of(std::span<const Part> parts);

// The names of all, for messages: "\"llama\" or \"mistral\"".
std::string hugging_face_families();
std::string gguf_families();

}  // namespace llama2cpp
