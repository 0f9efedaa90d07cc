// Not std::ifstream, which takes a failing allocation for a file that is not there.
#include "core/small_file.h"

#include <algorithm>
#include <cerrno>

#ifdef _WIN32
#include <cstdio>
#include <filesystem>
#include <memory>
#else
#include <fcntl.h>
#include <unistd.h>
#endif

namespace llama2cpp {

#ifdef _WIN32

std::string read_beginning(const std::string& path, std::size_t most) {
  const std::filesystem::path wide(std::u8string(path.begin(), path.end()));
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(_wfopen(wide.c_str(), L"rb"), &std::fclose);
  std::string bytes;
  std::size_t got = 0;
  while (file && got < most) {
    if (got == bytes.size()) bytes.resize(std::min(most, std::max<std::size_t>(4096, 2 * got)));
    const std::size_t now = std::fread(bytes.data() + got, 1, bytes.size() - got, file.get());
    if (now == 0) break;
    got += now;
  }
  bytes.resize(got);
  return bytes;
}

#else

namespace {

struct Descriptor {
  int value;
  ~Descriptor() {
    if (value >= 0) ::close(value);
  }
};

}  // namespace

std::string read_beginning(const std::string& path, std::size_t most) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  std::string bytes;
  std::size_t got = 0;
  while (file.value >= 0 && got < most) {
    if (got == bytes.size()) bytes.resize(std::min(most, std::max<std::size_t>(4096, 2 * got)));
    const ssize_t now = ::read(file.value, bytes.data() + got, bytes.size() - got);
    if (now < 0 && errno == EINTR) continue;
    if (now <= 0) break;
    got += static_cast<std::size_t>(now);
  }
  bytes.resize(got);
  return bytes;
}

#endif

}  // namespace llama2cpp
