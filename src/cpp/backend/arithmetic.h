// In which order a backend adds and multiplies: a model's choice, made when its backend is.
#pragma once

#include <cstdint>

namespace llama2cpp {

// contract: ours (backend/cpu/reference.cpp). llama2c: what llama2.c's runq does when gcc compiles it with -O3 and glibc
// is its C library (backend/cpu/llama2c_reference.cpp), so that int8 checkpoints give its text. Both are
// batch-invariant, and independent of threads, chunked prefill and instruction set.
enum class Arithmetic : std::uint8_t { contract, llama2c };

}  // namespace llama2cpp
