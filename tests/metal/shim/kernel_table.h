// What the software device knows of the kernels that it was compiled with. The tables are written by
// src/cpp/backend/metal/metal_sources.py.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "fibers.h"

namespace soft {

// A [[buffer(index)]] of a kernel.
struct BufferParameter {
  int index;
  std::size_t size;       // of one element, or of the struct that is referred to
  std::size_t alignment;  // of it
  bool reference;         // constant T&: one struct; else a pointer
  bool writes;            // device T*, and T is not const
  const char* name;
};

struct Arguments {
  std::array<void*, 31> buffers{};
  std::array<void*, 31> threadgroup{};
};

struct KernelEntry {
  const char* name;
  void (*run)(const Arguments&, const ThreadIds&);
  std::span<const BufferParameter> buffers;
  std::span<const int> threadgroup;  // indices of its [[threadgroup(index)]]
};

// A `constant uint name [[function_constant(index)]]` of a library; set before each dispatch.
struct ConstantParameter {
  int index;
  std::uint32_t* variable;
  const char* name;
};

struct LibraryEntry {
  const char* name;
  const char* source;  // byte for byte metal_source(name)
  std::span<const KernelEntry> kernels;
  std::span<const ConstantParameter> constants;
  bool contracted;
};

// Every library is compiled twice: a * b + c is two roundings, or one where the compiler likes.
std::span<const LibraryEntry> libraries(bool contracted);

}  // namespace soft
