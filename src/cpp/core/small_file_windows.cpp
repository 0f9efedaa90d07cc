// Windows has neither /proc nor /sys; what tests put in their place is read by the C library.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "core/small_file.h"
#include "core/write_target.h"

namespace llama2cpp {

std::string read_beginning(const std::string& path, std::size_t most) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(_wfopen(to_native(path).c_str(), L"rb"), &std::fclose);
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

}  // namespace llama2cpp
