// FileWriter and FolderWriter: what appears whole or not at all. It is written beside its place under a name that nobody
// has, and takes its own, in one step, when all of it is on the disk. What had that name stays as it was until then.
//
// Links are followed. Permissions of what is replaced are kept. What a killed process has left there is removed by the
// next. Any number of threads and processes may write to one path: it is that of the last to commit.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "core/new_entry.h"

namespace llama2cpp {

class FileWriter {
 public:
  // Throws std::system_error (code, path), as all of these do: for a folder that is missing or may not be written to,
  // and where something is that a file must not replace, such as a folder, a device, or a file that is read-only.
  explicit FileWriter(const std::string& path);

  // Where the file is until the commit, for those who write it by its name.
  std::string temporary_path() const { return from_native(entry_->path()); }

  void write(std::span<const std::byte> bytes);

  // Waits until the disk has it all, and gives the file its name. The last call.
  void commit();

 private:
  std::string path_;
  std::filesystem::path target_;
  std::unique_ptr<NewEntry> entry_;
};

class FolderWriter {
 public:
  // `exchange`: let the system exchange an old folder for the new one in one step, where it can. Where it cannot, there
  // is a moment without one: a process that is killed then leaves both, and the next to write there puts the old one
  // back.
  explicit FolderWriter(const std::string& path, bool exchange = true);

  std::string temporary_path() const { return from_native(entry_->path()); }  // files go in here

  void commit();

 private:
  void put_back(NewEntry& holder) const;

  std::string path_;
  std::filesystem::path target_;
  bool exchange_;
  std::unique_ptr<NewEntry> entry_;
};

}  // namespace llama2cpp
