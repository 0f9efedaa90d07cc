// What writers ask of the operating system: a file or folder under a name that nobody has, held so that other processes
// can tell it from what a killed one has left. new_entry_posix.cpp or new_entry_windows.cpp, as CMake picks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "core/write_target.h"

namespace llama2cpp {

// Names are as short as this whatever the target's is, which may be as long as names can be.
inline constexpr const char* kNewEntryPrefix = ".llama2cpp-";  // then 16 hexadecimal digits
inline constexpr const char* kNewEntrySuffix = ".part";        // not complete
inline constexpr const char* kPutAsideSuffix = ".old";         // a folder with what had the target's name in it

class NewEntry {
 public:
  // Beside `target`. Errors (std::system_error) name `path`, which is what the user has written.
  NewEntry(EntryKind kind, const std::filesystem::path& target, const std::string& path,
           const char* suffix = kNewEntrySuffix);
  // Removes it, and all that is in it, unless it was released.
  ~NewEntry();
  NewEntry(const NewEntry&) = delete;
  NewEntry& operator=(const NewEntry&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // Into a file; at most `bytes`, and how many.
  std::size_t write_some(std::span<const std::byte> bytes);
  // Gives it the permissions that the target has, or that a new one has, and waits until the disk has all of it. It can
  // be renamed then, and not be written to.
  void finish();
  // Of it and its name: it has another now.
  void release();

 private:
  struct Handle;

  bool create(EntryKind kind);  // false where the name is taken

  std::filesystem::path path_;
  std::filesystem::path target_;
  std::string named_;  // by the user
  std::unique_ptr<Handle> handle_;
};

// Runs `remove` for an entry that its writer has left behind, and not for one that is being written.
void if_abandoned(const std::filesystem::path& entry, void (*remove)(const std::filesystem::path&));

// Calls `see` with the path of each entry; with none where the folder cannot be read. Not std::filesystem's iterator: where
// there is no memory for a name, that of libstdc++ 12 ends the process.
void for_each_entry(const std::filesystem::path& folder,
                    const std::function<void(const std::filesystem::path& entry)>& see);

bool may_write(const std::filesystem::path& path);
void sync_folder(const std::filesystem::path& folder) noexcept;  // so that new names in it last

// Gives a name that nobody has; false where something has it already.
bool rename_to_free(const std::filesystem::path& from, const std::filesystem::path& to);

// Lets two entries change their names in one step.
enum class Exchanged { yes, one_is_missing, not_supported };
Exchanged exchange(const std::filesystem::path& one, const std::filesystem::path& other);

}  // namespace llama2cpp
