// Views of floats handed out of one piece of memory, one after the other, each on a cache line of its own.
#pragma once

#include <cstdint>

#include "core/buffer.h"
#include "core/tensor.h"

namespace llama2cpp {

class Views {
 public:
  static constexpr std::int64_t kLine = 64 / sizeof(float);  // vector loads of a view are aligned, on every backend

  explicit Views(const Buffer& memory) : next_(reinterpret_cast<float*>(memory.data())) {}

  Tensor operator()(std::int64_t rows, std::int64_t width) {
    const Tensor view(next_, {rows, width});
    next_ += (rows * width + kLine - 1) / kLine * kLine;
    return view;
  }

 private:
  float* next_;
};

}  // namespace llama2cpp
