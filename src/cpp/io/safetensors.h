// The container of safetensors files: which tensors a file holds, and where. What they mean is their reader's to say.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/buffer.h"

namespace llama2cpp {

// One tensor, C-contiguous and little-endian. A scalar has no dimensions; a tensor may be empty.
struct SafetensorsTensor {
  std::string_view dtype;           // as the format spells it: "F32", "F16", "BF16", "I32" ...
  std::vector<std::int64_t> shape;  // each from 0 to 2^63 - 1
  std::size_t begin = 0;            // bytes of the file, from `begin` up to `end`: as many as type and shape take
  std::size_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, std::string, std::less<>> metadata;
  std::map<std::string, SafetensorsTensor, std::less<>> tensors;
};

// Throws FormatError, with the tensor and the byte, for any file that is not as the format demands from its first byte
// to its last. Reads the header only.
SafetensorsHeader read_safetensors_header(const Buffer& file);

// A tensor to write: its bytes follow those of the tensor before it.
struct NamedShape {
  std::string name;
  std::string_view dtype;
  std::vector<std::int64_t> shape;
};

// What a file begins with, up to its first tensor. All of it is UTF-8, and all names differ.
std::string write_safetensors_header(const std::map<std::string, std::string, std::less<>>& metadata,
                                     std::span<const NamedShape> tensors);

// "F32 [2, 3]", for errors.
std::string describe_tensor(std::string_view dtype, std::span<const std::int64_t> shape);

}  // namespace llama2cpp
