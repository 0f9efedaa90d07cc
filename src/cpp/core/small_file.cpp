// Not std::ifstream, which takes a failing allocation for a file that is not there.
#include "core/small_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "core/descriptor.h"

namespace llama2cpp {

std::string read_beginning(const std::string& path, std::size_t most) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
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

}  // namespace llama2cpp
