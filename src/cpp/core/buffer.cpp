// Asks the operating system for memory and for files to read, so that POSIX and Windows meet in one place. Files are
// written in file_writer.cpp.
#include "core/buffer.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>
#include <system_error>

#include "core/check.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace llama2cpp {
namespace {

constexpr std::size_t kAlignment = 64;                                 // one cache line, one AVX-512 register
[[maybe_unused]] constexpr std::size_t kLarge = std::size_t{4} << 20;  // from here on, pages instead of the heap

#ifdef _WIN32

[[noreturn]] void throw_system_error(const std::string& path) {
  throw std::system_error(static_cast<int>(GetLastError()), std::system_category(), path);
}

struct Handle {
  HANDLE value;
  ~Handle() {
    if (value != nullptr && value != INVALID_HANDLE_VALUE) CloseHandle(value);
  }
};

std::wstring wide(const std::string& utf8) {
  const int length = MultiByteToWideChar(CP_UTF8, 0, utf8.c_str(), -1, nullptr, 0);
  std::wstring text(static_cast<std::size_t>(length), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, utf8.c_str(), -1, text.data(), length);
  return text;
}

struct OpenFile {
  Handle handle;
  std::size_t size;
};

OpenFile open_file(const std::string& path) {
  OpenFile file{{CreateFileW(wide(path).c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr,
                             OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr)},
                0};
  if (file.handle.value == INVALID_HANDLE_VALUE) throw_system_error(path);
  LARGE_INTEGER size;
  if (!GetFileSizeEx(file.handle.value, &size)) throw_system_error(path);
  file.size = static_cast<std::size_t>(size.QuadPart);
  return file;
}

std::shared_ptr<std::byte> map_file(const OpenFile& file, const std::string& path) {
  const Handle mapping{CreateFileMappingW(file.handle.value, nullptr, PAGE_READONLY, 0, 0, nullptr)};
  if (mapping.value == nullptr) throw_system_error(path);
  void* memory = MapViewOfFile(mapping.value, FILE_MAP_READ, 0, 0, 0);
  if (memory == nullptr) throw_system_error(path);
  return {static_cast<std::byte*>(memory), [](std::byte* p) { UnmapViewOfFile(p); }};
}

void read_file(const OpenFile& file, const std::string& path, std::byte* to) {
  for (std::size_t done = 0; done < file.size;) {
    const std::size_t left = file.size - done;
    const DWORD want = left > (1U << 30) ? (1U << 30) : static_cast<DWORD>(left);
    DWORD got = 0;
    if (!ReadFile(file.handle.value, to + done, want, &got, nullptr)) throw_system_error(path);
    if (got == 0) throw FormatError(cat(path, ": the file became shorter while it was read"));
    done += got;
  }
}

#else

[[noreturn]] void throw_system_error(const std::string& path) {
  throw std::system_error(errno, std::generic_category(), path);
}

struct OpenFile {
  int descriptor = -1;
  std::size_t size = 0;
  OpenFile() = default;
  OpenFile(OpenFile&& other) noexcept : descriptor(other.descriptor), size(other.size) { other.descriptor = -1; }
  OpenFile& operator=(OpenFile&&) = delete;
  ~OpenFile() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

OpenFile open_file(const std::string& path) {
  OpenFile file;
  file.descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file.descriptor < 0) throw_system_error(path);
  struct stat status {};
  if (::fstat(file.descriptor, &status) != 0) throw_system_error(path);
  if (S_ISDIR(status.st_mode)) {
    errno = EISDIR;
    throw_system_error(path);
  }
  // A pipe or a device has no length to check against and cannot be mapped.
  if (!S_ISREG(status.st_mode)) throw FormatError(cat(path, ": not a regular file"));
  file.size = static_cast<std::size_t>(status.st_size);
  return file;
}

std::shared_ptr<std::byte> map_file(const OpenFile& file, const std::string& path) {
  void* memory = ::mmap(nullptr, file.size, PROT_READ, MAP_SHARED, file.descriptor, 0);
  if (memory == MAP_FAILED) throw_system_error(path);
  const std::size_t size = file.size;
  return {static_cast<std::byte*>(memory), [size](std::byte* p) { ::munmap(p, size); }};
}

void read_file(const OpenFile& file, const std::string& path, std::byte* to) {
  for (std::size_t done = 0; done < file.size;) {
    const ssize_t got = ::read(file.descriptor, to + done, file.size - done);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_system_error(path);
    if (got == 0) throw FormatError(cat(path, ": the file became shorter while it was read"));
    done += static_cast<std::size_t>(got);
  }
}

#endif

}  // namespace

Buffer Buffer::heap(std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  if (bytes >= kLarge) {  // fresh pages are zero already, and whoever fills them first touches them, on all threads
    void* pages = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    ::madvise(pages, bytes, MADV_HUGEPAGE);
    return {{static_cast<std::byte*>(pages), [bytes](std::byte* p) { ::munmap(p, bytes); }}, bytes, Kind::pages};
  }
#endif
  auto* memory = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment}));
  std::shared_ptr<std::byte> owner(memory, [](std::byte* p) { ::operator delete(p, std::align_val_t{kAlignment}); });
  std::memset(memory, 0, bytes);
  return {std::move(owner), bytes, Kind::other};
}

Buffer Buffer::reserve(std::size_t bytes) {
#ifdef _WIN32
  void* memory = VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
  if (memory == nullptr) throw std::bad_alloc();
  return {{static_cast<std::byte*>(memory), [](std::byte* p) { VirtualFree(p, 0, MEM_RELEASE); }}, bytes, Kind::other};
#else
#ifdef MAP_NORESERVE
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
#else
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#endif
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_NOHUGEPAGE
  // A huge page would make the first token of every head cost 2 MB.
  ::madvise(memory, bytes, MADV_NOHUGEPAGE);
#endif
  return {{static_cast<std::byte*>(memory), [bytes](std::byte* p) { ::munmap(p, bytes); }}, bytes, Kind::other};
#endif
}

Buffer Buffer::file(const std::string& path, bool use_mmap) {
  const OpenFile file = open_file(path);
  if (file.size == 0) throw FormatError(cat(path, ": the file is empty"));
  if (use_mmap) return {map_file(file, path), file.size, Kind::file};
  Buffer copy = heap(file.size);
  read_file(file, path, copy.data());
  return copy;
}

Buffer Buffer::wrap(const void* memory, std::size_t bytes, std::shared_ptr<const void> owner) {
  // The const is given back by everyone who reads a file or an array: only owners of heap memory write.
  auto* start = const_cast<std::byte*>(static_cast<const std::byte*>(memory));
  return {std::shared_ptr<std::byte>(std::move(owner), start), bytes, Kind::other};
}

bool Buffer::forget() const {
#if defined(MADV_HUGEPAGE) && defined(MADV_FREE)
  return kind_ == Kind::pages && ::madvise(data(), size_, MADV_FREE) == 0;
#else
  return false;
#endif
}

void Buffer::will_need(const std::byte* begin, std::size_t bytes) const {
#ifdef _WIN32
  static_cast<void>(begin);
  static_cast<void>(bytes);
#else
  if (!mapped() || bytes == 0) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<std::uintptr_t>(begin) / page * page;
  ::madvise(reinterpret_cast<void*>(first), reinterpret_cast<std::uintptr_t>(begin) + bytes - first, MADV_WILLNEED);
#endif
}

void Buffer::drop_pages(const std::byte* begin, std::size_t bytes) const {
#ifdef _WIN32
  static_cast<void>(begin);
  static_cast<void>(bytes);
#else
  if (!mapped()) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<std::uintptr_t>(begin) + page - 1) / page * page;
  const auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes) / page * page;
  if (last > first) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
#endif
}

std::size_t available_memory() {
  std::size_t least = std::numeric_limits<std::size_t>::max();
#ifdef _WIN32
  MEMORYSTATUSEX status{};
  status.dwLength = sizeof(status);
  if (GlobalMemoryStatusEx(&status)) least = static_cast<std::size_t>(status.ullAvailPhys);
#elif defined(__linux__)
  std::ifstream meminfo("/proc/meminfo");
  std::size_t kibibytes = 0;
  for (std::string word; meminfo >> word;) {
    if (word == "MemAvailable:" && meminfo >> kibibytes) least = kibibytes * 1024;
  }
  std::ifstream limit_file("/sys/fs/cgroup/memory.max");
  std::ifstream used_file("/sys/fs/cgroup/memory.current");
  std::size_t limit = 0;  // "max" where there is none: then this is not read
  std::size_t used = 0;
  if (limit_file >> limit && used_file >> used) least = std::min(least, limit > used ? limit - used : 0);
#else
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page = ::sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) least = static_cast<std::size_t>(pages) * static_cast<std::size_t>(page);
#endif
  return least;
}

}  // namespace llama2cpp
