// How a model's makers want it sampled: what generation_config.json says, or a GGUF file's keys general.sampling.*.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace llama2cpp {

class Gguf;
class HfFolder;

struct GenerationConfig {
  std::string json;     // an object, with transformers' names; empty where nothing is said
  std::string problem;  // why what is said cannot be read
};

// GGUF's keys of numbers.
struct SamplingKey {
  std::string_view key;   // behind general.sampling.
  std::string_view name;  // transformers', or llama.cpp's where that has none
  bool integer = false;
};
std::span<const SamplingKey> sampling_keys();

// Both do not throw for what the file says: a model runs without it.
GenerationConfig read_generation_config(const HfFolder& folder);
GenerationConfig read_generation_config(const Gguf& gguf);

}  // namespace llama2cpp
