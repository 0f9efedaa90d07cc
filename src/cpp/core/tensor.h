// Tensor: a non-owning view of activations or keys and values. Weights are never Tensors (see format/format.h),
// so a quantized type cannot reach a norm, a hook or NumPy.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "core/check.h"
#include "core/q8_block.h"

namespace llama2cpp {

// q8_0: keys and values only, whose rows are blocks of 32 numbers (core/q8_block.h).
enum class DType : std::uint8_t { f32, f16, i32, q8_0 };

// Numbers that lie together with what they share: an element of a row in memory.
inline std::int64_t group_of(DType dtype) { return dtype == DType::q8_0 ? kQ8Numbers : 1; }

// Bytes of such an element.
inline std::int64_t size_of(DType dtype) {
  return dtype == DType::q8_0 ? static_cast<std::int64_t>(sizeof(Q8Block)) : dtype == DType::f16 ? 2 : 4;
}

// Bytes of so many numbers, a multiple of group_of.
inline std::int64_t bytes_of(DType dtype, std::int64_t numbers) { return numbers / group_of(dtype) * size_of(dtype); }

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int rank = 0;
  std::array<std::int64_t, 4> shape{};
  std::int64_t row_stride = 0;  // elements from one row (last axis) to the next; the outer axes are dense in rows

  Tensor() = default;
  Tensor(void* memory, DType type, std::initializer_list<std::int64_t> sizes) : data(memory), dtype(type) {
    for (const std::int64_t size : sizes) shape[static_cast<std::size_t>(rank++)] = size;
    row_stride = rank > 0 ? shape[static_cast<std::size_t>(rank - 1)] / group_of(type) : 0;
  }
  Tensor(float* memory, std::initializer_list<std::int64_t> sizes) : Tensor(memory, DType::f32, sizes) {}

  explicit operator bool() const { return data != nullptr; }
  std::int64_t dim(int axis) const { return shape[static_cast<std::size_t>(axis < 0 ? rank + axis : axis)]; }
  std::int64_t columns() const { return dim(-1); }
  std::int64_t rows() const {
    if (rank == 2) return shape[0];  // nearly always
    std::int64_t n = 1;
    for (int axis = 0; axis + 1 < rank; ++axis) n *= dim(axis);
    return n;
  }

  float* row(std::int64_t r) const { return static_cast<float*>(data) + r * row_stride; }
  std::int32_t* integers(std::int64_t r) const { return static_cast<std::int32_t*>(data) + r * row_stride; }  // of i32

  // Rows [begin, begin + count) of a [T, n] view.
  Tensor slice(std::int64_t begin, std::int64_t count) const {
    Tensor part = *this;
    part.data = static_cast<std::byte*>(data) + begin * row_stride * size_of(dtype);
    part.shape[0] = count;
    return part;
  }
};

inline std::string shape_text(const Tensor& tensor) {
  std::string text;
  for (int axis = 0; axis < tensor.rank; ++axis) text += cat(axis > 0 ? ", " : "", tensor.dim(axis));
  return cat("[", text, "]");
}

}  // namespace llama2cpp
