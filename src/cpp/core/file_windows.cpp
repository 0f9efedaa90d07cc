// Files on Windows. Nobody can write to a file while it is open here, so it is always as it was opened.
#include "core/file.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/windows_api.h"
#include "core/write_target.h"

namespace llama2cpp {
namespace {

HANDLE handle_of(std::intptr_t handle) { return reinterpret_cast<HANDLE>(handle); }

}  // namespace

File::File(std::string path) : path_(std::move(path)) {
  LLAMA2CPP_CHECK(path_.find('\0') == std::string::npos, "the path '", path_.c_str(), "' goes on after a NUL byte");
  const HANDLE handle = CreateFileW(to_native(path_).c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_DELETE,
                                    nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
  if (handle == INVALID_HANDLE_VALUE) throw_last_error(path_);
  LARGE_INTEGER size{};
  const bool is_file = GetFileType(handle) == FILE_TYPE_DISK;
  if (!is_file || !GetFileSizeEx(handle, &size)) {
    CloseHandle(handle);
    throw FormatError(cat(path_, ": not a regular file, but a pipe or a device"));
  }
  handle_ = reinterpret_cast<std::intptr_t>(handle);
  size_ = static_cast<std::size_t>(size.QuadPart);
}

File::~File() {
  unmap();
  CloseHandle(handle_of(handle_));
}

void File::read(std::size_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const auto want = static_cast<DWORD>(std::min(to.size(), std::size_t{1} << 30));
    OVERLAPPED at{};
    at.Offset = static_cast<DWORD>(offset & 0xFFFFFFFFU);
    at.OffsetHigh = static_cast<DWORD>(std::uint64_t{offset} >> 32);
    DWORD got = 0;
    if (!ReadFile(handle_of(handle_), to.data(), want, &got, &at) && GetLastError() != ERROR_HANDLE_EOF) {
      throw_last_error(path_);
    }
    if (got == 0) throw FormatError(cat(path_, ": the file has ended at byte ", offset, " of ", size_));
    offset += got;
    to = to.subspan(got);
  }
}

void File::map() {
  const HANDLE mapping = CreateFileMappingW(handle_of(handle_), nullptr, PAGE_READONLY, 0, 0, nullptr);
  if (mapping == nullptr) throw_last_error(path_);
  const void* memory = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
  const DWORD error = GetLastError();
  CloseHandle(mapping);
  if (memory == nullptr) throw std::system_error(static_cast<int>(error), std::system_category(), path_);
  data_ = static_cast<const std::byte*>(memory);
}

void File::unmap() {
  if (data_ != nullptr) UnmapViewOfFile(data_);
}

File::State File::state() const { return opened_; }
void File::begin_reading() const {}
void File::end_reading() const {}
void File::check() const {}

}  // namespace llama2cpp
