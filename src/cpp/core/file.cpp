// Files on POSIX systems.
#include "core/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <system_error>
#include <utility>

#include "core/check.h"
#include "core/descriptor.h"

namespace llama2cpp {
namespace {

int descriptor_of(std::intptr_t handle) { return static_cast<int>(handle); }

std::string_view kind_of(mode_t mode) {
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  return "something else";
}

void check_kind(mode_t mode, const std::string& path) {
  if (S_ISDIR(mode)) throw_errno(path, EISDIR);
  // A pipe or a device has no length to check against and cannot be mapped.
  if (!S_ISREG(mode)) throw FormatError(cat(path, ": not a regular file, but ", kind_of(mode)));
}

// A file's time of modification is that of the system's last tick, so a second change within a tick would not show. Waits
// (at most some milliseconds, and only for a file that was written just now) until the tick is over.
void wait_for_next_tick([[maybe_unused]] std::int64_t seconds, [[maybe_unused]] std::int64_t nanoseconds) {
#ifdef CLOCK_REALTIME_COARSE
  constexpr int kMostWaits = 20;
  constexpr timespec kWait{0, 1'000'000};
  for (int i = 0; i < kMostWaits; ++i) {
    timespec now{};
    if (::clock_gettime(CLOCK_REALTIME_COARSE, &now) != 0) return;
    const bool is_now = seconds == now.tv_sec && nanoseconds >= now.tv_nsec && nanoseconds < now.tv_nsec + 20'000'000;
    if (!is_now) return;
    ::nanosleep(&kWait, nullptr);
  }
#endif
}

}  // namespace

File::File(std::string path) : path_(std::move(path)) {
  LLAMA2CPP_CHECK(path_.find('\0') == std::string::npos, "the path '", path_.c_str(), "' goes on after a NUL byte");
  Descriptor opened(-1);
  do {  // without O_NONBLOCK a pipe would keep us until someone writes to it; to a regular file it means nothing
    opened.value = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (opened.value < 0 && errno == EINTR);
  struct stat status {};
  if (opened.value < 0) {
    const int error = errno;
    if (error == ENXIO && ::stat(path_.c_str(), &status) == 0) check_kind(status.st_mode, path_);  // sockets
    throw_errno(path_, error);
  }
  if (::fstat(opened.value, &status) != 0) throw_errno(path_);
  check_kind(status.st_mode, path_);
  handle_ = std::exchange(opened.value, -1);
  size_ = static_cast<std::size_t>(status.st_size);
}

File::~File() {
  unmap();
  if (handle_ >= 0) ::close(descriptor_of(handle_));
}

void File::read(std::size_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const std::size_t want = std::min(to.size(), std::size_t{1} << 30);
    const ssize_t got = ::pread(descriptor_of(handle_), to.data(), want, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno(path_);
    if (got == 0) {
      throw FormatError(cat(path_, ": the file has ended at byte ", offset, " of ", size_,
                            ": it became shorter since it was opened"));
    }
    offset += static_cast<std::size_t>(got);
    to = to.subspan(static_cast<std::size_t>(got));
  }
}

void File::map() {
  opened_ = state();
  wait_for_next_tick(opened_.seconds, opened_.nanoseconds);
  opened_ = state();
  if (opened_.size != size_) throw FormatError(cat(path_, ": its size changes while it is opened"));
  void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor_of(handle_), 0);
  if (memory == MAP_FAILED) throw_errno(path_);
  data_ = static_cast<const std::byte*>(memory);
  watch_ = std::make_unique<MapWatch>(data_, size_, path_);
}

void File::unmap() {
  watch_.reset();
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

File::State File::state() const {
  struct stat status {};
  if (::fstat(descriptor_of(handle_), &status) != 0) throw_errno(path_);
#ifdef __APPLE__
  const timespec& modified = status.st_mtimespec;
#else
  const timespec& modified = status.st_mtim;
#endif
  return {static_cast<std::size_t>(status.st_size), modified.tv_sec, modified.tv_nsec};
}

void File::begin_reading() const {
  if (watch_) watch_->begin_reading();
}

void File::end_reading() const {
  if (watch_) watch_->end_reading();
}

void File::check() const {
  if (const auto byte = watch_ ? watch_->broken() : std::nullopt) {
    throw FormatError(
        cat(path_, ": byte ", *byte, " of ", size_,
            " could not be read: the file has become shorter since it was opened, or its disk has failed"));
  }
  const State now = state();
  if (now.size != opened_.size) {
    throw FormatError(cat(path_, ": the file has ", now.size, " bytes, but had ", opened_.size,
                          " when it was opened: load it again"));
  }
  if (now.seconds != opened_.seconds || now.nanoseconds != opened_.nanoseconds) {
    throw FormatError(cat(path_, ": the file was written to since it was opened: load it again"));
  }
}

}  // namespace llama2cpp
