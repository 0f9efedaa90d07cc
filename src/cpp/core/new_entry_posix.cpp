// A flock tells the living from the dead: the system lets go of it when its process ends, however that ends.
#include "core/new_entry.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/descriptor.h"
#include "core/random_name.h"

namespace llama2cpp {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;  // a system call takes no more than 2^31 - 1 bytes
constexpr unsigned kPermissions = S_IRWXU | S_IRWXG | S_IRWXO;

// Some file systems have no locks. Nothing of theirs is ever taken for abandoned.
enum class Lock { ours, taken, none };

Lock lock(int descriptor) {
  while (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return Lock::taken;
    if (errno != EINTR) return Lock::none;
  }
  return Lock::ours;
}

// Whether the open file still has that name.
bool is_at(int descriptor, const fs::path& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(descriptor, &open) == 0 && ::lstat(path.c_str(), &named) == 0 && open.st_ino == named.st_ino &&
         open.st_dev == named.st_dev;
}

bool sync(int descriptor) {
#ifdef F_FULLFSYNC
  if (::fcntl(descriptor, F_FULLFSYNC) == 0) return true;  // macOS: fsync leaves it in the disk's own cache
#endif
  while (::fsync(descriptor) != 0) {
    if (errno != EINTR) return false;
  }
  return true;
}

void sync_all(const fs::path& folder, const std::string& named) {
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const fs::file_type type = it->symlink_status(error).type();
    if (type != fs::file_type::regular && type != fs::file_type::directory) continue;
    const Descriptor opened(::open(it->path().c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (opened.value < 0) throw_errno(named);
    if (!sync(opened.value) && type == fs::file_type::regular) throw_errno(named);  // some cannot sync folders
  }
  if (error) throw std::system_error(error, named);
}

// The permissions of the file that is replaced: its owner's if this process may give it away, and of its
// group's no more than others have if it may not.
unsigned permissions_like(const struct stat& old, int descriptor) {
  constexpr unsigned kOthers = S_IRWXO;
  constexpr unsigned kGroup = S_IRWXG;
  struct stat now {};
  const unsigned mode = old.st_mode & kPermissions;
  if (::fstat(descriptor, &now) != 0) return mode;
  if (now.st_uid != old.st_uid && ::fchown(descriptor, old.st_uid, old.st_gid) == 0) return mode;
  const bool same = now.st_gid == old.st_gid || ::fchown(descriptor, static_cast<uid_t>(-1), old.st_gid) == 0;
  return same ? mode : mode & (~kGroup | (mode & kOthers) << 3U);
}

}  // namespace

struct NewEntry::Handle {
  EntryKind kind;
  Descriptor descriptor;
  unsigned mode;             // of a new one, as the umask has it
  pid_t owner = ::getpid();  // a forked child has a copy of this, and must not remove its parent's

  explicit Handle(EntryKind of_kind) : kind(of_kind), descriptor(-1), mode(0) {}
};

NewEntry::NewEntry(EntryKind kind, const fs::path& target, const std::string& path, const char* suffix)
    : target_(target), named_(path) {
  do {
    path_ = target.parent_path() / (kNewEntryPrefix + random_name() + suffix);
  } while (!create(kind));
}

bool NewEntry::create(EntryKind kind) {
  struct stat old {};
  const bool replaces = ::stat(target_.c_str(), &old) == 0;
  auto handle = std::make_unique<Handle>(kind);  // first: where memory for it is short, nothing has been made
  int& opened = handle->descriptor.value;
  if (kind == EntryKind::file) {
    opened = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, replaces ? 0600 : 0666);
  } else if (::mkdir(path_.c_str(), replaces ? 0700 : 0777) == 0) {
    opened = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (opened < 0 && errno == ENOENT) return false;  // another process has taken it for abandoned
  }
  if (opened < 0 && errno == EEXIST) return false;
  if (opened < 0 && errno == EACCES) {
    throw RefusedPathError(std::errc::permission_denied, named_,
                           "Permission denied (its folder may not be written to)");
  }
  if (opened < 0) throw_errno(named_);
  // Between open and flock another process may have taken it for abandoned: then it goes, and here is the next try.
  if (lock(opened) == Lock::taken || !is_at(opened, path_)) return false;
  struct stat status {};
  if (::fstat(opened, &status) != 0) throw_errno(named_);
  handle->mode = status.st_mode & kPermissions;
  const unsigned usable = kind == EntryKind::file ? S_IRUSR | S_IWUSR : S_IRWXU;
  if ((handle->mode & usable) != usable)
    static_cast<void>(::fchmod(opened, static_cast<mode_t>(handle->mode | usable)));
  handle_ = std::move(handle);
  return true;
}

NewEntry::~NewEntry() {
  if (handle_ == nullptr || handle_->owner != ::getpid()) return;
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::size_t NewEntry::write_some(std::span<const std::byte> bytes) {
  const ssize_t written = ::write(handle_->descriptor.value, bytes.data(), std::min(bytes.size(), kMostAtOnce));
  if (written < 0 && errno != EINTR) throw_errno(named_);
  return static_cast<std::size_t>(std::max<ssize_t>(written, 0));
}

void NewEntry::finish() {
  const int descriptor = handle_->descriptor.value;
  if (handle_->kind == EntryKind::folder) sync_all(path_, named_);
  struct stat old {};
  struct stat now {};
  const unsigned mode = ::stat(target_.c_str(), &old) == 0 ? permissions_like(old, descriptor) : handle_->mode;
  if (::fstat(descriptor, &now) != 0) throw_errno(named_);
  if ((now.st_mode & kPermissions) != mode && ::fchmod(descriptor, static_cast<mode_t>(mode)) != 0) throw_errno(named_);
  if (!sync(descriptor) && handle_->kind == EntryKind::file) throw_errno(named_);
}

void NewEntry::release() { handle_.reset(); }

void if_abandoned(const fs::path& entry, void (*remove)(const fs::path&)) {
  const Descriptor opened(::open(entry.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW));
  if (opened.value < 0) return;
  struct stat status {};
  if (::fstat(opened.value, &status) != 0 || !(S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))) return;
  if (lock(opened.value) == Lock::ours && is_at(opened.value, entry)) remove(entry);
}

// What is there no more (another process is about to put a new one in its place) forbids nothing.
bool may_write(const fs::path& path) {
  return ::faccessat(AT_FDCWD, path.c_str(), W_OK, AT_EACCESS) == 0 || errno == ENOENT;
}

void sync_folder(const fs::path& folder) noexcept {
  const Descriptor opened(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC));
  if (opened.value >= 0) static_cast<void>(::fsync(opened.value));  // some file systems cannot
}

namespace {

// 0, or the error. ENOSYS where the system cannot.
#if defined(RENAME_EXCHANGE) && defined(RENAME_NOREPLACE)
int rename_with(const fs::path& from, const fs::path& to, bool exchange) {
  const unsigned flags = exchange ? RENAME_EXCHANGE : RENAME_NOREPLACE;
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0 ? 0 : errno;
}
#elif defined(RENAME_SWAP) && defined(RENAME_EXCL)
int rename_with(const fs::path& from, const fs::path& to, bool exchange) {
  return ::renamex_np(from.c_str(), to.c_str(), exchange ? RENAME_SWAP : RENAME_EXCL) == 0 ? 0 : errno;
}
#else
int rename_with(const fs::path&, const fs::path&, bool) { return ENOSYS; }
#endif

bool is_unsupported(int error) { return error == ENOSYS || error == EINVAL || error == ENOTSUP || error == EOPNOTSUPP; }

}  // namespace

bool rename_to_free(const fs::path& from, const fs::path& to) {
  int error = rename_with(from, to, false);
  if (is_unsupported(error)) {
    struct stat status {};
    if (::lstat(to.c_str(), &status) == 0) return false;
    error = ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;  // refuses a folder that is not empty
  }
  if (error == EEXIST || error == ENOTEMPTY) return false;
  if (error != 0) throw std::system_error(error, std::generic_category(), from_native(to));
  return true;
}

void for_each_entry(const fs::path& folder, const std::function<void(const fs::path& entry)>& see) {
  const auto close = [](DIR* opened) { ::closedir(opened); };
  const std::unique_ptr<DIR, decltype(close)> opened(::opendir(folder.empty() ? "." : folder.c_str()), close);
  if (opened == nullptr) return;
  while (const dirent* entry = ::readdir(opened.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") see(folder / name);
  }
}

Exchanged exchange(const fs::path& one, const fs::path& other) {
  const int error = rename_with(one, other, true);
  if (error == 0) return Exchanged::yes;
  if (error == ENOENT) return Exchanged::one_is_missing;
  if (is_unsupported(error)) return Exchanged::not_supported;
  throw std::system_error(error, std::generic_category(), from_native(other));
}

}  // namespace llama2cpp
