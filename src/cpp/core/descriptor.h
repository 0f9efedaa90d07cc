// What the files for POSIX systems share: a descriptor that closes itself, and errno as an exception.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

namespace llama2cpp {

struct Descriptor {
  int value = -1;
  explicit Descriptor(int descriptor) : value(descriptor) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

[[noreturn]] inline void throw_errno(const std::string& path, int error = errno) {
  throw std::system_error(error, std::generic_category(), path);
}

}  // namespace llama2cpp
