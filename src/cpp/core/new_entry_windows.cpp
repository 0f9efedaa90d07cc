// A handle that shares no deletion tells the living from the dead. It is closed just before the entry is renamed, so what
// was written to within the last hour is taken for living too.
#include "core/new_entry.h"

#include <algorithm>
#include <chrono>
#include <system_error>
#include <utility>

#include "core/random_name.h"
#include "core/windows_api.h"

namespace llama2cpp {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;  // a system call takes a DWORD of bytes
constexpr std::chrono::hours kStillLiving{1};

HANDLE open(const fs::path& path, DWORD access, DWORD share, DWORD disposition) {
  return CreateFileW(path.c_str(), access, share, nullptr, disposition, FILE_FLAG_BACKUP_SEMANTICS, nullptr);
}

void sync_all(const fs::path& folder, const std::string& named) {
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const HANDLE file = open(entry.path(), GENERIC_WRITE, FILE_SHARE_READ, OPEN_EXISTING);
    if (file == INVALID_HANDLE_VALUE) throw_last_error(named);
    const bool done = FlushFileBuffers(file) != 0;
    CloseHandle(file);
    if (!done) throw_last_error(named);
  }
}

}  // namespace

struct NewEntry::Handle {
  EntryKind kind;
  HANDLE value;

  Handle(EntryKind of_kind, HANDLE opened) : kind(of_kind), value(opened) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() { close(); }
  bool close() {
    const HANDLE opened = std::exchange(value, INVALID_HANDLE_VALUE);
    return opened == INVALID_HANDLE_VALUE || CloseHandle(opened) != 0;
  }
};

NewEntry::NewEntry(EntryKind kind, const fs::path& target, const std::string& path, const char* suffix)
    : target_(target), named_(path) {
  do {
    path_ = target.parent_path() / (kNewEntryPrefix + random_name() + suffix);
  } while (!create(kind));
}

bool NewEntry::create(EntryKind kind) {
  const DWORD share = FILE_SHARE_READ | FILE_SHARE_WRITE;
  HANDLE opened = INVALID_HANDLE_VALUE;
  if (kind == EntryKind::file) {
    opened = open(path_, GENERIC_READ | GENERIC_WRITE, share, CREATE_NEW);
  } else if (CreateDirectoryW(path_.c_str(), nullptr)) {
    opened = open(path_, GENERIC_READ, share, OPEN_EXISTING);
  }
  if (opened == INVALID_HANDLE_VALUE) {
    const DWORD error = GetLastError();
    if (error == ERROR_FILE_EXISTS || error == ERROR_ALREADY_EXISTS) return false;
    throw_last_error(named_);
  }
  handle_ = std::make_unique<Handle>(kind, opened);
  return true;
}

NewEntry::~NewEntry() {
  if (handle_ == nullptr) return;
  handle_.reset();  // Windows removes no file that is open
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::size_t NewEntry::write_some(std::span<const std::byte> bytes) {
  DWORD written = 0;
  const auto size = static_cast<DWORD>(std::min(bytes.size(), kMostAtOnce));
  if (!WriteFile(handle_->value, bytes.data(), size, &written, nullptr)) throw_last_error(named_);
  return written;
}

void NewEntry::finish() {  // permissions are those of the folder around it, as Windows has them
  if (handle_->kind == EntryKind::folder) sync_all(path_, named_);
  if (handle_->kind == EntryKind::file && !FlushFileBuffers(handle_->value)) throw_last_error(named_);
  if (!handle_->close()) throw_last_error(named_);
}

void NewEntry::release() { handle_.reset(); }

void if_abandoned(const fs::path& entry, void (*remove)(const fs::path&)) {
  if (fs::last_write_time(entry) > fs::file_time_type::clock::now() - kStillLiving) return;
  const HANDLE opened = open(entry, DELETE, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, OPEN_EXISTING);
  if (opened == INVALID_HANDLE_VALUE) return;
  CloseHandle(opened);
  remove(entry);
}

bool may_write(const fs::path&) { return true; }  // opening it tells

void sync_folder(const fs::path&) noexcept {}

bool rename_to_free(const fs::path& from, const fs::path& to) {
  if (MoveFileExW(from.c_str(), to.c_str(), MOVEFILE_WRITE_THROUGH)) return true;
  const DWORD error = GetLastError();
  if (error == ERROR_FILE_EXISTS || error == ERROR_ALREADY_EXISTS) return false;
  if (error == ERROR_ACCESS_DENIED && fs::exists(to)) return false;  // so it says of folders
  throw_last_error(from_native(to));
}

void for_each_entry(const fs::path& folder, const std::function<void(const fs::path& entry)>& see) {
  std::error_code ignored;
  for (fs::directory_iterator it(folder.empty() ? fs::path(".") : folder, ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    see(it->path());
  }
}

Exchanged exchange(const fs::path&, const fs::path&) { return Exchanged::not_supported; }

}  // namespace llama2cpp
