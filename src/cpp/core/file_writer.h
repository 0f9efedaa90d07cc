// FileWriter: a file that appears whole or not at all. It is written beside its place under a temporary name, and takes
// its own name, in one step, when all of it is on the disk. What had that name stays as it was until then.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

namespace llama2cpp {

class FileWriter {
 public:
  // Throws std::system_error (code, path), as all of these do: for a folder that is missing or may not be written to,
  // and where `path` is something that a file must not replace, such as a folder or a device.
  explicit FileWriter(std::string path);
  // Removes the temporary file, unless there was a commit.
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(std::span<const std::byte> bytes);

  // Waits until the disk has it all, and gives the file its name. The last call.
  void commit();

 private:
  struct File;

  std::string path_;
  std::string temporary_path_;
  std::unique_ptr<File> file_;  // null after a commit
};

}  // namespace llama2cpp
