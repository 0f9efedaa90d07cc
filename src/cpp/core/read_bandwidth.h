// How fast threads can read memory: what limits everything that goes through all weights once.
#pragma once

#include <cstddef>
#include <string>

#include "core/buffer.h"

namespace llama2cpp {

class ThreadPool;

// Memory that is read again and again, by the same kind of threads as a model has, in several ways: which is fastest depends on
// the machine, and on what its neighbours do.
class ReadLimit {
 public:
  struct Speed {
    double bytes_per_second;
    std::string reader;  // which was the fastest
  };

  // `bytes` is what the caller goes through, again and again; of more than kMost so much is read. Caches hold of it what they can.
  ReadLimit(ThreadPool& pool, std::size_t bytes);

  // What is read: `bytes`, to whole steps, or about kMost.
  std::size_t bytes() const { return bytes_; }

  // The best of all readers, each of which reads all of it at least once, and has its share of `seconds`.
  Speed measure(double seconds) const;

  static constexpr std::size_t kMost = std::size_t{512} << 20;  // more than caches hold

 private:
  ThreadPool& pool_;
  std::size_t bytes_;
  Buffer large_;  // in huge pages, where there are such
  Buffer small_;  // in the system's own
};

}  // namespace llama2cpp
