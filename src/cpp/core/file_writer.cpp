#include "core/file_writer.h"

#include <system_error>
#include <vector>

#include "core/leftovers.h"

namespace llama2cpp {
namespace fs = std::filesystem;
namespace {

std::unique_ptr<NewEntry> begin(EntryKind kind, const fs::path& target, const std::string& path) {
  remove_leftovers(target.parent_path());
  return std::make_unique<NewEntry>(kind, target, path);
}

}  // namespace

FileWriter::FileWriter(const std::string& path)
    : path_(path), target_(write_target(path, EntryKind::file)), entry_(begin(EntryKind::file, target_, path)) {}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) bytes = bytes.subspan(entry_->write_some(bytes));
}

void FileWriter::commit() {
  entry_->finish();
  std::error_code error;
  fs::rename(entry_->path(), target_, error);
  if (error) throw std::system_error(error, path_);
  sync_folder(target_.parent_path());
  entry_->release();
}

FolderWriter::FolderWriter(const std::string& path, bool exchange)
    : path_(path),
      target_(write_target(path, EntryKind::folder)),
      exchange_(exchange),
      entry_(begin(EntryKind::folder, target_, path)) {}

void FolderWriter::commit() {
  entry_->finish();
  // Others may make or remove the target at any time, so neither way is certain to be open.
  std::vector<std::unique_ptr<NewEntry>> put_aside;
  while (true) {
    try {
      if (rename_to_free(entry_->path(), target_)) break;
      const Exchanged done = exchange_ ? exchange(entry_->path(), target_) : Exchanged::not_supported;
      if (done == Exchanged::yes) {
        std::error_code ignored;  // what stays is a leftover, which the next writer removes
        fs::remove_all(entry_->path(), ignored);
        break;
      }
      if (done == Exchanged::one_is_missing) continue;
    } catch (const std::system_error& error) {
      if (!put_aside.empty()) put_back(*put_aside.back());
      throw std::system_error(error.code(), path_);
    }
    put_aside.push_back(std::make_unique<NewEntry>(EntryKind::folder, target_, path_, kPutAsideSuffix));
    std::error_code error;
    fs::rename(target_, put_aside.back()->path() / target_.filename(), error);
    if (error && error != std::errc::no_such_file_or_directory) throw std::system_error(error, path_);
  }
  sync_folder(target_.parent_path());
  entry_->release();
}

// It stays where it was put if that cannot be: the next writer tries again.
void FolderWriter::put_back(NewEntry& holder) const {
  try {
    if (rename_to_free(holder.path() / target_.filename(), target_)) return;
  } catch (const std::system_error&) {
    holder.release();
  }
}

}  // namespace llama2cpp
