// What encoding an op takes, and what ops share. One per backend; used under its lease.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "backend/metal/device.h"
#include "backend/metal/memory_map.h"
#include "backend/metal/pass.h"

namespace llama2cpp::metal {

// Memory that an op uses between its dispatches.
enum class Scratch : std::uint8_t { normalized, gathered, partial, pattern, kCount };

struct Tools {
  Device device;
  MemoryMap memory{device};
  Pass pass{device};

  // A tensor as an argument of a kernel: from its first element to its last. Throws what MemoryMap::resolve does.
  Operand operand(const Tensor& tensor, Access access, const char* op, const char* name) const;
  Operand reads(const Tensor& tensor, const char* op, const char* name) const {
    return operand(tensor, Access::read, op, name);
  }
  Operand writes(const Tensor& tensor, const char* op, const char* name) const {
    return operand(tensor, Access::write, op, name);
  }

  // [rows, columns] floats that hold anything, until the next op asks for the same kind.
  Tensor scratch(Scratch kind, std::int64_t rows, std::int64_t columns);

 private:
  std::array<Buffer, static_cast<std::size_t>(Scratch::kCount)> scratch_;
};

// out[t] = (x[t] * (1 / norm.scale[t])) * norm.gain; either may be empty. out may be x.
void encode_normalize(Tools& tools, const Tensor& x, const Norm& norm, const Tensor& out, const char* op);

// A grid over rows (y) and pieces of so many columns (x); the threads of a group share a piece out.
Grid by_pieces(std::int64_t rows, std::int64_t columns, std::int64_t piece, const char* op);

// Whether an output is the very tensor that an input is (op_checks let nothing else begin where it does): then they are one
// argument of a kernel of its own.
inline bool same(const Tensor& a, const Tensor& b) { return a.data == b.data; }

// A size as kernels take it. Throws std::invalid_argument where it does not fit.
std::uint32_t size32(std::int64_t size, const char* op);

}  // namespace llama2cpp::metal
