// LoRA adapters in files: peft's adapter_model.safetensors, and the GGUF files that llama.cpp's converter writes. Which tensors
// a file has, and which weights of a model they are beside. (What adapter_config.json says, adapter_files.py reads.)
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"

namespace llama2cpp {

struct Family;

struct AdapterFile {
  bool gguf = false;
  std::string architecture;                            // of a GGUF file: general.architecture
  double alpha = 0;                                    // and adapter.lora.alpha
  std::map<std::string, Weight, std::less<>> tensors;  // matrices, by their names in the file
};

// By its first bytes. Throws FormatError for a file that is damaged, no adapter, or one of another kind, and std::system_error.
// Reads no matrix: the weights lie in the mapped file.
AdapterFile open_adapter_file(const std::string& path);

// How the names in an adapter's file are to be read for a model.
struct AdapterNames {
  Naming naming = Naming::hugging_face;
  const Family* family = nullptr;  // whose names they are; null: any family's
  RopeStyle rope_style{};          // the order of the rows of queries and keys
};

// Of a GGUF file with that architecture, or of a peft folder. Throws FormatError for another architecture than the model's.
AdapterNames adapter_names(const Checkpoint& model, bool gguf, std::string_view architecture);

// Rows [first, first + count) of a module's output are what a part of a layer gives.
struct AdapterTarget {
  Part part;
  std::int64_t layer = 0;
  std::int64_t first = 0;
  std::int64_t count = 0;
};

// The parts that a module ("model.layers.0.self_attn.q_proj", "blk.0.attn_q") is: several where a family's files hold them as
// one. Throws FormatError for a module that the model does not have.
std::vector<AdapterTarget> adapter_targets(const Config& config, const AdapterNames& names, std::string_view module);

}  // namespace llama2cpp
