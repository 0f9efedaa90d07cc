// Errors and the one macro: a check at an op's door, whose message is built only when it fails.
#pragma once

#include <cstddef>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>

#include "core/numbers.h"

namespace llama2cpp {

// A damaged, foreign or unsupported file: what was expected, what was found, and at which byte or tensor.
// (Bad arguments and shapes are std::invalid_argument. Python sees both as ValueError.)
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// More memory is needed than there is; the message says how much of both. Python sees a MemoryError.
class OutOfMemoryError : public std::bad_alloc {
 public:
  explicit OutOfMemoryError(const std::string& message) : message_(message) {}
  const char* what() const noexcept override { return message_.what(); }

 private:
  std::runtime_error message_;  // copying an exception must not throw, and copies of this one do not
};

// The session has no room for the tokens it was asked to take.
struct ContextFullError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Sizes that come from a file are multiplied and added only through these.
inline std::size_t checked_mul(std::size_t a, std::size_t b, const char* what) {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) {
    throw FormatError(cat(what, ": ", a, " * ", b, " overflows the address space"));
  }
  return a * b;
}

inline std::size_t checked_add(std::size_t a, std::size_t b, const char* what) {
  if (a > std::numeric_limits<std::size_t>::max() - b) {
    throw FormatError(cat(what, ": ", a, " + ", b, " overflows the address space"));
  }
  return a + b;
}

}  // namespace llama2cpp

#define LLAMA2CPP_CHECK(condition, ...)                           \
  do {                                                            \
    if (!(condition)) [[unlikely]] {                              \
      throw std::invalid_argument(::llama2cpp::cat(__VA_ARGS__)); \
    }                                                             \
  } while (false)
