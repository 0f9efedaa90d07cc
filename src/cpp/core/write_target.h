// Where a file or folder that somebody has named is written, and the errors that say why it cannot be there.
#pragma once

#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

namespace llama2cpp {

// A path that nothing is written to. Python sees an OSError of the code's kind, with this reason.
class RefusedPathError : public std::system_error {
 public:
  RefusedPathError(std::errc code, std::string path, std::string reason)
      : std::system_error(std::make_error_code(code), path + ": " + reason),
        path_(std::move(path)),
        reason_(std::move(reason)) {}
  const std::string& path() const { return path_; }
  const std::string& reason() const { return reason_; }

 private:
  std::string path_;
  std::string reason_;
};

// UTF-8 on Windows, bytes elsewhere.
std::filesystem::path to_native(const std::string& path);
std::string from_native(const std::filesystem::path& path);

enum class EntryKind { file, folder };

// The path at the end of all links, so that a link stays one. Refuses what the kind must not replace (a device, a pipe, a
// socket, a folder by a file, ...), what is read-only, and names that are too long, before anything is written.
std::filesystem::path write_target(const std::string& path, EntryKind kind);

}  // namespace llama2cpp
