#include "trace.h"

#include <cstring>

namespace soft {

Tracer tracer = nullptr;

namespace {

inline void report(const void* address, std::size_t bytes, std::size_t alignment, bool writes) {
  if (tracer != nullptr) tracer(address, bytes, alignment, writes);
}

}  // namespace
}  // namespace soft

// What clang's -fsanitize=thread calls. "Unaligned" is an access that the compiler knows of no alignment for: bytes of its
// own merging, or a copied struct.
#define SOFT_ACCESS(bytes)                                                                           \
  void __tsan_read##bytes(const void* address) { soft::report(address, bytes, bytes, false); }       \
  void __tsan_write##bytes(const void* address) { soft::report(address, bytes, bytes, true); }       \
  void __tsan_unaligned_read##bytes(const void* address) { soft::report(address, bytes, 1, false); } \
  void __tsan_unaligned_write##bytes(const void* address) { soft::report(address, bytes, 1, true); } \
  void __tsan_read_write##bytes(const void* address) {                                               \
    soft::report(address, bytes, bytes, false);                                                      \
    soft::report(address, bytes, bytes, true);                                                       \
  }                                                                                                  \
  void __tsan_unaligned_read_write##bytes(const void* address) {                                     \
    soft::report(address, bytes, 1, false);                                                          \
    soft::report(address, bytes, 1, true);                                                           \
  }

extern "C" {
void __tsan_init() {}
SOFT_ACCESS(1)
SOFT_ACCESS(2)
SOFT_ACCESS(4)
SOFT_ACCESS(8)
SOFT_ACCESS(16)
void* __tsan_memcpy(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) {
    soft::report(from, bytes, 1, false);
    soft::report(to, bytes, 1, true);
  }
  return std::memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, std::size_t bytes) {
  if (bytes > 0) {
    soft::report(from, bytes, 1, false);
    soft::report(to, bytes, 1, true);
  }
  return std::memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, std::size_t bytes) {
  if (bytes > 0) soft::report(to, bytes, 1, true);
  return std::memset(to, value, bytes);
}
}
