// How fast threads can read memory: what limits everything that goes through all weights once.
#pragma once

#include <cstddef>

namespace llama2cpp {

// Bytes a second that `threads` threads read together: each one sequential stream through its share of `bytes` bytes,
// again and again for about `seconds`. Memory that a cache holds is read from the cache.
double read_bandwidth(int threads, std::size_t bytes, double seconds);

}  // namespace llama2cpp
