// MemoryPool: pieces of memory that are asked for again and again, such as run_with_cache's and the logits of steps. The
// system hands out new memory zeroed, page by page, which takes longer than filling it.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "core/buffer.h"

namespace llama2cpp {

class MemoryPool {
 public:
  // alloc: makes what the pool does not have (Buffer::heap, or a backend's).
  explicit MemoryPool(std::function<Buffer(std::size_t)> alloc);

  // Memory that holds anything. When the last copy of the Buffer is gone the pool keeps it for the next one who asks: up
  // to eight pieces of at most 1 MB; and two larger ones, where the system can take the pages back meanwhile
  // (Buffer::forget).
  Buffer borrow(std::size_t bytes);

 private:
  struct Idle;
  struct Loan;

  std::function<Buffer(std::size_t)> alloc_;
  std::shared_ptr<Idle> idle_;
};

}  // namespace llama2cpp
