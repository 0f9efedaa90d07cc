// How a model's makers want it sampled: what generation_config.json says, or a GGUF file's keys general.sampling.*.
#pragma once

#include <string>

namespace llama2cpp {

class Gguf;
class HfFolder;

struct GenerationConfig {
  std::string json;     // an object, with transformers' names; empty where nothing is said
  std::string problem;  // why what is said cannot be read
};

// Both do not throw for what the file says: a model runs without it.
GenerationConfig read_generation_config(const HfFolder& folder);
GenerationConfig read_generation_config(const Gguf& gguf);

}  // namespace llama2cpp
