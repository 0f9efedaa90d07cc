// Session files from the inside: files in memory at any address, the caller's poll, and the writer's promise that a
// file appears whole or not at all. The rest is in tests/engine/test_session_file.py.
#include <doctest/doctest.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "core/file_writer.h"
#include "model/fingerprint.h"
#include "model/session_file.h"
#include "tiny_model.h"

namespace {

namespace fs = std::filesystem;
using llama2cpp::Buffer;
using llama2cpp::FileWriter;
using llama2cpp::Model;
using llama2cpp::Session;
using Bytes = std::vector<std::byte>;

// A folder of its own, which goes with all that is in it.
class Folder {
 public:
  Folder() {
    static int count = 0;
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    path_ = fs::temp_directory_path() / llama2cpp::cat("llama2cpp-test-", now, "-", count++);
    fs::create_directory(path_);
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string file(const char* name) const { return (path_ / name).string(); }
  std::ptrdiff_t files() const { return std::distance(fs::directory_iterator(path_), {}); }

 private:
  fs::path path_;
};

std::string text_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

Bytes file_of(const Session& session) {
  Bytes bytes;
  llama2cpp::write_session(
      session, [&](std::span<const std::byte> more) { bytes.insert(bytes.end(), more.begin(), more.end()); },
      tiny::no_poll);
  return bytes;
}

}  // namespace

TEST_CASE("a session from a file at any address goes on with the same bits") {
  for (const char* kv : {"f32", "f16"}) {
    CAPTURE(kv);
    const auto model = tiny::model(tiny::config(), {.threads = 1, .kv_dtype = kv});
    Session session(model, 40);
    tiny::feed(session, tiny::tokens(20, 1));
    const Bytes bytes = file_of(session);
    for (std::size_t shift = 0; shift < 5; ++shift) {
      Bytes shifted(shift);
      shifted.insert(shifted.end(), bytes.begin(), bytes.end());
      const Buffer file = Buffer::wrap(shifted.data() + shift, bytes.size(), nullptr);
      const auto loaded = llama2cpp::read_session(model, file, 0, tiny::no_poll);
      CHECK(loaded->tokens() == session.tokens());
      CHECK(loaded->context() == 40);
      CHECK(tiny::logits_of(*loaded) == tiny::logits_of(session));
      CHECK(file_of(*loaded) == bytes);
      const auto fork = session.fork(tiny::no_poll);
      tiny::feed(*fork, {3, 1, 4});
      tiny::feed(*loaded, {3, 1, 4});
      CHECK(tiny::logits_of(*loaded) == tiny::logits_of(*fork));
    }
  }
}

TEST_CASE("a fingerprint is not changed by packing") {
  const auto model = tiny::model(tiny::config(), {.threads = 1, .pack = "always"});
  const std::string before = llama2cpp::fingerprint(model->checkpoint());
  model->prepare(tiny::no_poll);
  CHECK(llama2cpp::fingerprint(model->checkpoint()) == before);
  CHECK(before.size() == 32);
}

TEST_CASE("poll is called in a long call, and may end it") {
  struct Interrupted {};
  const auto model = tiny::model();
  Session session(model, 0);
  tiny::feed(session, {1, 2, 3});
  const auto slowly = [](std::span<const std::byte>) { std::this_thread::sleep_for(std::chrono::milliseconds(60)); };
  CHECK_THROWS_AS(llama2cpp::write_session(session, slowly, [] { throw Interrupted(); }), Interrupted);
}

TEST_CASE("a session cannot be saved in the middle of its own call") {
  const Folder folder;
  Session session(tiny::model(), 0);
  {
    const llama2cpp::SessionLock lock(session, tiny::no_poll);
    CHECK_THROWS_AS(llama2cpp::save_session(session, folder.file("session"), tiny::no_poll), std::runtime_error);
  }
  CHECK(folder.files() == 0);
  llama2cpp::save_session(session, folder.file("session"), tiny::no_poll);
  CHECK(folder.files() == 1);
}

TEST_CASE("a file that is not committed was never there") {
  const Folder folder;
  {
    FileWriter file(folder.file("a"));
    file.write(bytes_of("half of it"));
    CHECK_FALSE(fs::exists(folder.file("a")));
    CHECK(folder.files() == 1);
  }
  CHECK(folder.files() == 0);
}

TEST_CASE("a file is replaced by the commit, and not before") {
  const Folder folder;
  std::ofstream(folder.file("a")) << "old";
  FileWriter first(folder.file("a"));
  FileWriter second(folder.file("a"));
  first.write(bytes_of("first "));
  second.write(bytes_of("second"));
  first.write(bytes_of("file"));
  first.write({});
  CHECK(text_of(folder.file("a")) == "old");
  first.commit();
  CHECK(text_of(folder.file("a")) == "first file");
  second.commit();
  CHECK(text_of(folder.file("a")) == "second");
  CHECK(folder.files() == 1);
}

TEST_CASE("a file cannot be where its folder is not, nor in the place of a folder") {
  const Folder folder;
  CHECK_THROWS_AS(FileWriter(folder.file("missing") + "/a"), std::system_error);
  fs::create_directory(folder.file("b"));
  CHECK_THROWS_AS(FileWriter(folder.file("b")), std::system_error);
  CHECK(folder.files() == 1);
}
