// Files as the core opens them: what is read by position, what is no file, and what is told of one that changes.
#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "core/buffer.h"
#include "core/check.h"
#include "core/file.h"

namespace fs = std::filesystem;
using namespace llama2cpp;

namespace {

// A file of 100,000 bytes that goes with this object.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& name) : path_(fs::temp_directory_path() / ("llama2cpp-test-file-" + name)) {
    std::ofstream file(path_, std::ios::binary);
    for (int i = 0; i < 100'000; ++i) file.put(static_cast<char>(i % 251));
  }
  ~TemporaryFile() {
    std::error_code ignored;
    fs::remove(path_, ignored);
  }
  std::string path() const { return path_.string(); }
  void resize(std::size_t size) const { fs::resize_file(path_, size); }

 private:
  fs::path path_;
};

}  // namespace

TEST_CASE("a file is read by position, whole or mapped") {
  const TemporaryFile temporary("read");
  const File file(temporary.path());
  CHECK(file.size() == 100'000);
  std::vector<std::byte> bytes(1000);
  file.read(90'000, bytes);
  const Buffer mapped = Buffer::file(temporary.path());
  const Buffer copied = Buffer::file(temporary.path(), false);
  CHECK(mapped.mapped());
  CHECK(!copied.mapped());
  CHECK(std::equal(bytes.begin(), bytes.end(), mapped.data() + 90'000));
  CHECK(std::equal(bytes.begin(), bytes.end(), copied.data() + 90'000));
  for (const Buffer& buffer : {mapped, copied}) {
    std::vector<std::byte> part(500);
    buffer.read(buffer.data() + 90'500, part);
    CHECK(std::equal(part.begin(), part.end(), bytes.begin() + 500));
  }
}

TEST_CASE("a path that is no file is refused") {
  const TemporaryFile temporary("no");
  CHECK_THROWS_AS(File(fs::temp_directory_path().string()), std::system_error);
  CHECK_THROWS_AS(File(temporary.path() + "-missing"), std::system_error);
  CHECK_THROWS_AS(File(""), std::system_error);
  CHECK_THROWS_AS(File(temporary.path() + std::string(1, '\0') + "x"), std::invalid_argument);
  CHECK_THROWS_AS(Buffer::file(temporary.path(), true, 99'999), FormatError);
  CHECK_NOTHROW(Buffer::file(temporary.path(), true, 100'000));
}

TEST_CASE("mapped files are collected once each") {
  const TemporaryFile temporary("collect");
  const Buffer one = Buffer::file(temporary.path());
  const Buffer other = Buffer::file(temporary.path());
  std::vector<Buffer> files;
  for (const Buffer& buffer : {one, one, other, Buffer::heap(64), Buffer()}) buffer.add_to(files);
  CHECK(files.size() == 2);
  CHECK_NOTHROW(FileReads(files).check());
}

#ifndef _WIN32  // where nobody can shorten a file that is open

TEST_CASE("what a shortened file cannot give is zeros, and then an error") {
  const TemporaryFile temporary("short");
  const Buffer file = Buffer::file(temporary.path());
  const FileReads reads({&file, 1});
  CHECK_NOTHROW(reads.check());
  temporary.resize(10'000);
  CHECK_THROWS_AS(reads.check(), FormatError);
  CHECK(file.data()[9'999] == std::byte{9'999 % 251});
  CHECK(file.data()[50'000] == std::byte{0});
  CHECK(file.data()[99'999] == std::byte{0});
  CHECK_THROWS_AS(reads.check(), FormatError);
  temporary.resize(100'000);
  CHECK_THROWS_AS(reads.check(), FormatError);  // zeros have been read once
  std::vector<std::byte> bytes(1000);
  const File again(temporary.path());
  temporary.resize(10'000);
  CHECK_THROWS_AS(again.read(9'500, bytes), FormatError);
}

#endif
