// Which threads there are, across fork(): a child has the one thread that called it and none of the others.
#pragma once

#include <cstdint>

namespace llama2cpp {

// The calling thread's own number, from 1 on. No other thread ever gets it, and it stays the same in a child of fork().
std::uint64_t this_thread_number();

// Whether a thread with this number can still be running: false for those that stayed with the parent of a fork().
bool in_this_process(std::uint64_t thread_number);

// How many fork()s lie between this process and the one that first asked: what threads held or ran before the last of
// them is not here.
int fork_generation();

}  // namespace llama2cpp
