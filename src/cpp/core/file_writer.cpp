// Files are made here and opened in buffer.cpp; nothing else asks the operating system for them.
#include "core/file_writer.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <system_error>
#include <utility>

#include "core/check.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace llama2cpp {
namespace {

constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;  // a system call takes no more than 2^31 - 1 bytes

#ifdef _WIN32

constexpr const char* kFolderEnds = "/\\:";

[[noreturn]] void throw_system_error(const std::string& path) {
  throw std::system_error(static_cast<int>(GetLastError()), std::system_category(), path);
}

std::wstring wide(const std::string& utf8) {
  const int length = MultiByteToWideChar(CP_UTF8, 0, utf8.c_str(), -1, nullptr, 0);
  std::wstring text(static_cast<std::size_t>(length), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, utf8.c_str(), -1, text.data(), length);
  return text;
}

std::uint64_t process_id() { return GetCurrentProcessId(); }

void check_replaceable(const std::string& path) {
  const DWORD attributes = GetFileAttributesW(wide(path).c_str());
  if (attributes == INVALID_FILE_ATTRIBUTES) return;  // nothing is there
  if ((attributes & (FILE_ATTRIBUTE_DIRECTORY | FILE_ATTRIBUTE_DEVICE)) != 0) {
    throw std::system_error(ERROR_ACCESS_DENIED, std::system_category(), path);
  }
}

void remove_file(const std::string& path) { DeleteFileW(wide(path).c_str()); }

void rename_file(const std::string& from, const std::string& to) {
  if (!MoveFileExW(wide(from).c_str(), wide(to).c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) {
    throw_system_error(to);
  }
}

#else

constexpr const char* kFolderEnds = "/";

[[noreturn]] void throw_system_error(const std::string& path) {
  throw std::system_error(errno, std::generic_category(), path);
}

std::uint64_t process_id() { return static_cast<std::uint64_t>(::getpid()); }

void check_replaceable(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0 || S_ISREG(status.st_mode)) return;
  // rename() would put a file in the place of /dev/null without a word.
  const auto code = S_ISDIR(status.st_mode) ? std::errc::is_a_directory : std::errc::invalid_argument;
  throw std::system_error(static_cast<int>(code), std::generic_category(), path);
}

void remove_file(const std::string& path) { ::unlink(path.c_str()); }

// The new name is in the folder, so the folder has to be on the disk too. Some file systems cannot say so; the file is
// whole in any case, so that is no error.
void sync_folder_of(const std::string& path) {
  const std::size_t end = path.find_last_of(kFolderEnds);
  const std::string folder = end == std::string::npos ? "." : path.substr(0, end + 1);
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  static_cast<void>(::fsync(descriptor));
  ::close(descriptor);
}

void rename_file(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_system_error(to);
  sync_folder_of(to);
}

#endif

// A name that no one else has, in the same folder: a rename does not cross file systems. It does not grow with the
// name of the file, which may be as long as names can be.
std::string temporary_path(const std::string& path) {
  static std::atomic<std::uint64_t> count{0};
  const std::size_t end = path.find_last_of(kFolderEnds);
  const std::string folder = end == std::string::npos ? "" : path.substr(0, end + 1);
  return cat(folder, ".llama2cpp-", process_id(), "-", count.fetch_add(1), ".tmp");
}

}  // namespace

#ifdef _WIN32

struct FileWriter::File {
  HANDLE handle = INVALID_HANDLE_VALUE;

  File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (handle != INVALID_HANDLE_VALUE) CloseHandle(handle);
  }

  // False where there is such a file already.
  bool create(const std::string& name, const std::string& path) {
    handle = CreateFileW(wide(name).c_str(), GENERIC_WRITE, 0, nullptr, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (handle == INVALID_HANDLE_VALUE && GetLastError() != ERROR_FILE_EXISTS) throw_system_error(path);
    return handle != INVALID_HANDLE_VALUE;
  }

  std::size_t write_some(std::span<const std::byte> bytes, const std::string& path) const {
    DWORD written = 0;
    if (!WriteFile(handle, bytes.data(), static_cast<DWORD>(bytes.size()), &written, nullptr)) throw_system_error(path);
    return written;
  }

  void sync_and_close(const std::string& path) {
    if (!FlushFileBuffers(handle)) throw_system_error(path);
    if (!CloseHandle(std::exchange(handle, INVALID_HANDLE_VALUE))) throw_system_error(path);
  }
};

#else

struct FileWriter::File {
  int descriptor = -1;

  File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() {
    if (descriptor >= 0) ::close(descriptor);
  }

  // False where there is such a file already.
  bool create(const std::string& name, const std::string& path) {
    descriptor = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0 && errno != EEXIST) throw_system_error(path);
    return descriptor >= 0;
  }

  std::size_t write_some(std::span<const std::byte> bytes, const std::string& path) const {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) throw_system_error(path);
    return static_cast<std::size_t>(std::max<ssize_t>(written, 0));
  }

  void sync_and_close(const std::string& path) {
    if (!on_the_disk()) throw_system_error(path);
    if (::close(std::exchange(descriptor, -1)) != 0) throw_system_error(path);
  }

 private:
  bool on_the_disk() const {
#ifdef F_FULLFSYNC
    if (::fcntl(descriptor, F_FULLFSYNC) == 0) return true;  // macOS: fsync leaves it in the disk's own cache
#endif
    return ::fsync(descriptor) == 0;
  }
};

#endif

FileWriter::FileWriter(std::string path) : path_(std::move(path)), file_(std::make_unique<File>()) {
  check_replaceable(path_);
  do {
    temporary_path_ = temporary_path(path_);
  } while (!file_->create(temporary_path_, path_));
}

FileWriter::~FileWriter() {
  if (file_ == nullptr) return;
  file_.reset();  // Windows removes no file that is open
  remove_file(temporary_path_);
}

void FileWriter::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    bytes = bytes.subspan(file_->write_some(bytes.first(std::min(bytes.size(), kMostAtOnce)), path_));
  }
}

void FileWriter::commit() {
  file_->sync_and_close(path_);
  rename_file(temporary_path_, path_);
  file_.reset();
}

}  // namespace llama2cpp
