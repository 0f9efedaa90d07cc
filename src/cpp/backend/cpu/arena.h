// Arena: one piece of memory handed out in parts, each on a cache line of its own. The same code counts what it will take
// and takes it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace llama2cpp {

class Arena {
 public:
  // Without memory it only counts, and all parts are null.
  explicit Arena(void* memory = nullptr) : memory_(static_cast<std::byte*>(memory)) {}

  // Room for n of T.
  template <class T>
  T* take(std::int64_t n) {
    std::byte* const part = memory_ == nullptr ? nullptr : memory_ + used_;
    constexpr std::int64_t kLine = 64;
    used_ += (n * static_cast<std::int64_t>(sizeof(T)) + kLine - 1) / kLine * kLine;
    return reinterpret_cast<T*>(part);
  }

  std::int64_t used() const { return used_; }

 private:
  std::byte* memory_;
  std::int64_t used_ = 0;
};

}  // namespace llama2cpp
