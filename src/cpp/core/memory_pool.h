// MemoryPool: large pieces of memory that are asked for again and again, such as run_with_cache's. The system hands out
// new memory zeroed, which takes as long as filling it.
#pragma once

#include <cstddef>
#include <memory>

#include "core/buffer.h"

namespace llama2cpp {

class MemoryPool {
 public:
  MemoryPool();

  // Memory that holds anything. When the last copy of the Buffer is gone the pool keeps it for the next one who asks, as
  // one of two pieces, and only where the system can take the pages back meanwhile (Buffer::forget).
  Buffer take(std::size_t bytes);

 private:
  struct Idle;
  struct Loan;

  std::shared_ptr<Idle> idle_;
};

}  // namespace llama2cpp
