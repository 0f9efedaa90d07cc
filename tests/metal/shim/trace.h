// Each load and store of a kernel is seen: the kernels are compiled with calls at each (clang's -fsanitize=thread, whose
// functions trace.cpp defines; no sanitizer's library is linked). Accesses to a thread's own variables that never leave
// registers, and to constants, are not reported.
#pragma once

#include <cstddef>

namespace soft {

// `alignment` is what the kernel's code takes for granted of this access (1, or the size of the access).
// It may call soft::fail.
using Tracer = void (*)(const void* address, std::size_t bytes, std::size_t alignment, bool writes);
extern Tracer tracer;  // null: nobody looks

}  // namespace soft
