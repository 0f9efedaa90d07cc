#include "core/write_target.h"

#include "core/new_entry.h"

namespace llama2cpp {
namespace fs = std::filesystem;
namespace {

constexpr int kMostLinks = 40;  // as many as Linux follows

const char* name_of(fs::file_type type) {
  switch (type) {
    case fs::file_type::directory:
      return "folder";
    case fs::file_type::character:
    case fs::file_type::block:
      return "device";
    case fs::file_type::fifo:
      return "pipe";
    case fs::file_type::socket:
      return "socket";
    case fs::file_type::regular:
      return "file";
    default:
      return "special file";
  }
}

[[noreturn]] void refuse_kind(const std::string& path, fs::file_type found, EntryKind kind) {
  std::errc code = std::errc::invalid_argument;
  if (kind == EntryKind::folder) code = std::errc::not_a_directory;
  if (found == fs::file_type::directory) code = std::errc::is_a_directory;
  const std::string what = kind == EntryKind::file ? "no file" : "no folder";
  throw RefusedPathError(code, path, std::string("it is a ") + name_of(found) + ", and " + what + " is written there");
}

fs::path without_last_slash(const fs::path& path) { return path.has_filename() ? path : path.parent_path(); }

}  // namespace

fs::path to_native(const std::string& path) {
#ifdef _WIN32
  return fs::path(std::u8string(path.begin(), path.end()));
#else
  return fs::path(path);
#endif
}

std::string from_native(const fs::path& path) {
#ifdef _WIN32
  const std::u8string text = path.u8string();
  return {text.begin(), text.end()};
#else
  return path.native();
#endif
}

fs::path write_target(const std::string& path, EntryKind kind) {
  fs::path target = to_native(path);
  if (kind == EntryKind::folder) target = without_last_slash(target);
  if (target.empty()) throw std::system_error(std::make_error_code(std::errc::no_such_file_or_directory), path);
  if (!target.has_filename()) refuse_kind(path, fs::file_type::directory, kind);

  // First with the system following the links, because it knows which ones must not be.
  std::error_code error;
  const fs::file_status status = fs::status(target, error);
  if (status.type() == fs::file_type::none) throw std::system_error(error, path);
  if (fs::exists(status)) {
    const auto expected = kind == EntryKind::file ? fs::file_type::regular : fs::file_type::directory;
    if (status.type() != expected) refuse_kind(path, status.type(), kind);
    constexpr fs::perms kWrite = fs::perms::owner_write | fs::perms::group_write | fs::perms::others_write;
    // Also for the superuser, who may write to it: somebody wanted it to stay as it is.
    if ((status.permissions() & kWrite) == fs::perms::none || !may_write(target)) {
      const std::string what = kind == EntryKind::file ? "the file" : "the folder";
      throw RefusedPathError(std::errc::permission_denied, path, "Permission denied (" + what + " is read-only)");
    }
  }
  for (int links = 0; fs::is_symlink(fs::symlink_status(target, error)); ++links) {
    if (links == kMostLinks) {
      throw std::system_error(std::make_error_code(std::errc::too_many_symbolic_link_levels), path);
    }
    const fs::path link = fs::read_symlink(target, error);
    if (error) throw std::system_error(error, path);
    target = without_last_slash(target.parent_path() / link);  // an absolute link is itself
  }
  target = fs::absolute(target, error);  // the process's folder may be another when it is done
  if (error) throw std::system_error(error, path);
  return target;
}

}  // namespace llama2cpp
