// How fast threads can read memory: what limits everything that goes through all weights once.
#pragma once

#include <cstddef>

namespace llama2cpp {

class ThreadPool;

// Bytes a second that the pool's threads read together: each one sequential stream through its share of `bytes` bytes,
// again and again for about `seconds`. Memory that a cache holds is read from the cache.
double read_bandwidth(ThreadPool& pool, std::size_t bytes, double seconds);

}  // namespace llama2cpp
