// File: a regular file, open for reading. The one door through which the core opens what it reads, so that a pipe, a device
// or a path with a NUL byte is refused here and nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "core/bus_errors.h"

namespace llama2cpp {

class File {
 public:
  // Throws std::system_error (errno, path), std::invalid_argument for a path with a NUL byte, and FormatError for what is no
  // regular file. Never waits for a pipe's other end.
  explicit File(std::string path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& path() const { return path_; }
  std::size_t size() const { return size_; }

  // Copies bytes [offset, offset + to.size()), from any thread. Throws std::system_error, or FormatError where the file has
  // become shorter.
  void read(std::size_t offset, std::span<std::byte> to) const;

  // Maps all of the file, read-only, until this object goes. To be called once, and not for an empty file.
  void map();
  const std::byte* data() const { return data_; }  // null: not mapped

  // Between these two a byte of the map that cannot be read is zero instead of the end of the process, and check() throws.
  void begin_reading() const;
  void end_reading() const;

  // Throws FormatError where the file is not as it was opened: another size or time of modification, or a byte that could not
  // be read. Another file under the same path is no change.
  void check() const;

 private:
  struct State {
    std::size_t size = 0;
    std::int64_t seconds = 0;  // of the last modification
    std::int64_t nanoseconds = 0;
  };
  State state() const;
  void unmap();

  std::string path_;
  std::intptr_t handle_ = -1;  // POSIX: a descriptor; Windows: a HANDLE
  std::size_t size_ = 0;
  State opened_;
  const std::byte* data_ = nullptr;
  std::unique_ptr<MapWatch> watch_;
};

}  // namespace llama2cpp
