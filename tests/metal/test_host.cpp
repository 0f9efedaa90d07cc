// The host side of the Metal backend on the software device: memory and its lifetime, passes in portions, errors that the GPU ends
// with, a lease that is let go of in the middle, a forked child. What kernels compute is tested from Python.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <Foundation/Foundation.hpp>
#include <Metal/Metal.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "../cpp/tiny_model.h"
#include "backend/metal/metal_backend.h"
#include "backend/metal/tools.h"
#include "core/check.h"
#include "core/wait_lock.h"
#include "soft_metal.h"

using llama2cpp::Backend;
using llama2cpp::Buffer;
using llama2cpp::kNoPoll;
using llama2cpp::Model;
using llama2cpp::Plane;
using llama2cpp::Session;
using llama2cpp::Tensor;
using llama2cpp::Vector;
using llama2cpp::metal::Device;
using llama2cpp::metal::MemoryMap;
using llama2cpp::metal::Place;
using llama2cpp::metal::Pool;

namespace {

// The software device's options for one test.
class Options {
 public:
  explicit Options(std::string_view text) : before_(soft::options()) {
    soft::set_options(soft::parse_options(text, before_));
  }
  ~Options() { soft::set_options(before_); }
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;

 private:
  soft::Options before_;
};

// A file of some pages, whose byte i is i % 251.
class PatternFile {
 public:
  explicit PatternFile(std::size_t bytes)
      : path_(std::filesystem::temp_directory_path() / ("llama2cpp-host-" + std::to_string(::getpid()))) {
    std::ofstream file(path_, std::ios::binary);
    for (std::size_t i = 0; i < bytes; ++i) file.put(static_cast<char>(i % 251));
  }
  ~PatternFile() { std::filesystem::remove(path_); }
  PatternFile(const PatternFile&) = delete;
  PatternFile& operator=(const PatternFile&) = delete;
  Buffer open(bool mapped = true) const { return Buffer::file(path_.string(), mapped); }

 private:
  std::filesystem::path path_;
};

Plane plane_of(const Buffer& memory, std::size_t begin, std::size_t bytes) {
  return {memory.data() + begin, bytes, static_cast<std::int64_t>(bytes), memory};
}

const std::byte* address(const Place& place) {
  return static_cast<const std::byte*>(place.buffer->contents()) + place.offset;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return {};
}

bool says(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

// x of a backend's, with numbers.
struct Numbers {
  Numbers(Backend& backend, std::int64_t rows, std::int64_t columns) : memory(backend.alloc(bytes(rows * columns))) {
    tensor = Tensor(reinterpret_cast<float*>(memory.data()), {rows, columns});
    for (std::int64_t i = 0; i < rows * columns; ++i) tensor.row(0)[i] = static_cast<float>(i % 7) - 3.0F;
  }
  static std::size_t bytes(std::int64_t count) { return static_cast<std::size_t>(count) * sizeof(float); }

  Buffer memory;
  Tensor tensor;
};

std::shared_ptr<const Model> tiny_model(const std::string& backend) {
  return tiny::model(tiny::config(), {.backend = backend});
}

std::vector<float> logits_of(Session& session, const std::vector<std::int32_t>& tokens) {
  tiny::feed(session, tokens);
  std::vector<float> copy;
  session.with_logits([&](std::span<const float> logits) { copy.assign(logits.begin(), logits.end()); });
  return copy;
}

}  // namespace

TEST_CASE("memory of alloc() is zeroed, known by its addresses while it lives, and outlives the device") {
  const Pool pool;
  const long before = soft::live_objects("Buffer");
  Buffer survivor;
  {
    auto device = std::make_unique<Device>();
    auto map = std::make_unique<MemoryMap>(*device);
    Buffer memory = map->alloc(100);
    CHECK(std::all_of(memory.data(), memory.data() + 100, [](std::byte b) { return b == std::byte{0}; }));
    CHECK(map->resolve(memory.data(), 100, "op", "x").offset == 0);
    CHECK(map->resolve(memory.data() + 60, 40, "op", "x").offset == 60);
    CHECK(message_of([&] { map->resolve(memory.data() + 60, 41, "add", "a"); }) ==
          "[add] a is no memory of the Metal backend's: make it with alloc()");
    const float elsewhere = 0;
    CHECK(says(message_of([&] { map->resolve(&elsewhere, 4, "rope", "cos"); }), "[rope] cos"));
    const std::byte* const gone = memory.data();
    memory = {};
    CHECK(says(message_of([&] { map->resolve(gone, 1, "op", "x"); }), "no memory"));
    survivor = map->alloc(8);
    map.reset();
    device.reset();
  }
  survivor.data()[7] = std::byte{1};
  CHECK(soft::live_objects("Buffer") == before + 1);
  survivor = {};
  CHECK(soft::live_objects("Buffer") == before);
}

TEST_CASE("alloc() of more than a buffer can have, and of more than there is, says how much") {
  const Options small("max_buffer=1m,memory=4m");
  const Pool pool;
  const Device device;
  MemoryMap map(device);
  CHECK(says(message_of([&] { map.alloc(std::size_t{2} << 20); }), "more than a buffer of the GPU's can have"));
  const std::size_t left = map.left();
  const Buffer memory = map.alloc(std::size_t{1} << 20);
  CHECK(map.left() == left - memory.size());
}

TEST_CASE("a large piece that the GPU has no room for is refused") {
  const Options small("memory=100m");
  const Pool pool;
  const Device device;
  MemoryMap map(device);
  const Buffer memory = map.alloc(std::size_t{70} << 20);
  CHECK(
      says(message_of([&] { map.alloc(std::size_t{70} << 20); }), "0.073 GB are more than the GPU has left, 0.031 GB"));
}

TEST_CASE("a weight in a mapped file is used where it lies, through one view of the file") {
  const PatternFile file(100'000);
  const Pool pool;
  const Device device;
  MemoryMap map(device);
  const Buffer mapped = file.open();
  const Place first = map.weight(plane_of(mapped, 28, 5000), 4);
  const Place second = map.weight(plane_of(mapped, 90'000, 10'000), 4);
  CHECK(address(first) == mapped.data() + 28);
  CHECK(first.buffer == second.buffer);
  CHECK(second.offset == 90'000);
}

TEST_CASE("a file larger than a buffer is seen through views that overlap where a weight needs it") {
  const Options small("max_buffer=64k");
  const PatternFile file(300'000);
  const Pool pool;
  const Device device;
  MemoryMap map(device);
  const Buffer mapped = file.open();
  for (std::size_t begin = 0; begin + 30'000 <= 300'000; begin += 30'000) {
    const Place place = map.weight(plane_of(mapped, begin, 30'000), 4);
    CHECK(address(place) == mapped.data() + begin);
    CHECK(place.offset + 30'000 <= place.buffer->length());
    CHECK(place.buffer->length() <= std::size_t{64} << 10);
  }
  CHECK(says(message_of([&] { map.weight(plane_of(mapped, 0, 100'000), 4); }), "more than a buffer of the GPU's"));
}

TEST_CASE("a weight that is not mapped is copied once for its owner, and the copy goes when the owner has") {
  const PatternFile file(10'000);
  const Pool pool;
  const Device device;
  MemoryMap map(device);
  const long before = soft::live_objects("Buffer");
  Buffer memory = file.open(false);
  const Place first = map.weight(plane_of(memory, 100, 50), 4);
  CHECK(address(first) != memory.data() + 100);
  CHECK(std::memcmp(address(first), memory.data() + 100, 50) == 0);
  CHECK(map.weight(plane_of(memory, 400, 50), 4).buffer == first.buffer);
  // One that does not lie at a multiple of what its kernel reads has a copy of its own, mapped or not.
  const Buffer mapped = file.open();
  for (const Buffer& owner : {memory, mapped}) {
    const Place odd = map.weight(plane_of(owner, 101, 50), 4);
    CHECK(odd.offset == 0);
    CHECK(std::memcmp(address(odd), owner.data() + 101, 50) == 0);
    CHECK(map.weight(plane_of(owner, 101, 50), 4).buffer == odd.buffer);
  }
  CHECK(soft::live_objects("Buffer") == before + 3);
  map.purge();
  CHECK(soft::live_objects("Buffer") == before + 3);
  memory = {};
  map.purge();
  CHECK(soft::live_objects("Buffer") == before + 1);  // the mapped file's odd one
  std::byte loose[16] = {std::byte{3}};
  const Place unowned = map.weight({loose, sizeof(loose), sizeof(loose), {}}, 4);
  CHECK(*address(unowned) == std::byte{3});
  map.purge();
  CHECK(soft::live_objects("Buffer") == before + 1);
}

TEST_CASE("a large file that was read into memory is used where it lies, and let go of with it") {
  const PatternFile file(std::size_t{5} << 20);
  const Pool pool;
  const Device device;
  MemoryMap map(device);
  const long before = soft::live_objects("Buffer");
  Buffer memory = file.open(false);
  const Place first = map.weight(plane_of(memory, 128, 50), 4);
  const Place last = map.weight(plane_of(memory, memory.size() - 4, 4), 4);
  CHECK(address(first) == memory.data() + 128);
  CHECK(last.buffer == first.buffer);
  CHECK(soft::live_objects("Buffer") == before + 1);
  memory = {};
  map.purge();
  CHECK(soft::live_objects("Buffer") == before);
}

TEST_CASE("the same address with another owner's numbers is another weight") {
  const Pool pool;
  const Device device;
  MemoryMap map(device);
  std::vector<std::byte> memory(64, std::byte{1});
  const auto plane = [&] {
    const Buffer owner = Buffer::wrap(memory.data(), memory.size(), std::make_shared<int>(0));
    return plane_of(owner, 0, memory.size());
  };
  {
    const Plane first = plane();
    CHECK(*address(map.weight(first, 4)) == std::byte{1});
  }
  memory.assign(64, std::byte{2});
  CHECK(*address(map.weight(plane(), 4)) == std::byte{2});
}

TEST_CASE("a pass goes to the GPU in portions, and waits for the oldest where two are under way") {
  const auto backend = llama2cpp::make_metal_backend();
  const Backend::Lease lease(*backend, kNoPoll);
  const Numbers x(*backend, 4, 8000);
  const auto commits = [] { return soft::counters().commits; };
  std::uint64_t before = commits();
  for (int i = 0; i < 20; ++i) backend->add(x.tensor, x.tensor, x.tensor);  // each about a fifth of a portion
  CHECK(commits() >= before + 2);
  CHECK(commits() < before + 20);
  backend->sync();
  before = commits();
  backend->sync();
  CHECK(commits() == before);
  CHECK(x.tensor.row(0)[1] == -2.0F * (1 << 20));
}

TEST_CASE("what the GPU ends with is an error with Metal's text and advice, and the session stays where it was") {
  const auto cpu = tiny_model("cpu");
  const auto metal = tiny_model("metal");
  Session expected(cpu, 0);
  const std::vector<float> wanted = logits_of(expected, {3, 4, 5, 6});
  struct Case {
    const char* options;
    const char* text;
    const char* advice;
  };
  for (const Case& each : {Case{"fail=timeout@1", "Timeout", "feed fewer tokens at a time"},
                           Case{"fail=interactivity@1", "Impacting Interactivity", "feed fewer tokens at a time"},
                           Case{"fail=out_of_memory@1", "Insufficient Memory", "a smaller context"}}) {
    CAPTURE(each.options);
    Session session(metal, 0);
    tiny::feed(session, {3, 4});
    std::string error;
    {
      const Options failing(each.options);
      error = message_of([&] { tiny::feed(session, {5, 6}); });
    }
    CHECK(says(error, each.text));
    CHECK(says(error, each.advice));
    CHECK(session.position() == 2);
    const std::vector<float> found = logits_of(session, {5, 6});
    for (std::size_t i = 0; i < wanted.size(); ++i) CHECK(found[i] == doctest::Approx(wanted[i]).epsilon(1e-4));
  }
}

TEST_CASE("a kernel that the GPU does not take is an error that advises the CPU") {
  const auto backend = llama2cpp::make_metal_backend();
  const Numbers x(*backend, 1, 8);
  const Options refusing("refuse=double_in_place");
  const Backend::Lease lease(*backend, kNoPoll);
  CHECK_THROWS_WITH_AS(backend->add(x.tensor, x.tensor, x.tensor),
                       "preparing the kernel elementwise/double_in_place: Compiler encountered an internal error; "
                       "use backend='cpu'",
                       std::runtime_error);
}

TEST_CASE("a lease that ends in the middle of a pass leaves nothing behind, and the next one begins anew") {
  const auto backend = llama2cpp::make_metal_backend();
  const Numbers x(*backend, 4, 100);
  {
    const Backend::Lease lease(*backend, kNoPoll);
    backend->add(x.tensor, x.tensor, x.tensor);
  }
  CHECK(soft::live_objects("CommandBuffer") == 0);
  CHECK(soft::live_objects("ComputeCommandEncoder") == 0);
  CHECK(x.tensor.row(0)[1] == -2.0F);  // not done: it was never handed over
  {
    const Backend::Lease lease(*backend, kNoPoll);
    backend->add(x.tensor, x.tensor, x.tensor);
    { const Backend::Pause others_may_run(*backend); }
    CHECK(x.tensor.row(0)[1] == -4.0F);
    backend->add(x.tensor, x.tensor, x.tensor);
    backend->sync();
  }
  CHECK(x.tensor.row(0)[1] == -8.0F);
  soft::throw_late_faults();
}

TEST_CASE("nothing of Metal's outlives its model") {
  const long before = soft::live_objects();
  {
    const auto model = tiny_model("metal");
    Session session(model, 0);
    tiny::feed(session, {1, 2, 3});
    tiny::feed(session, {4});
  }
  CHECK_MESSAGE(soft::live_objects() == before, soft::describe_live_objects());
  soft::throw_late_faults();
}

TEST_CASE("a forked child gets an exception, not the parent's GPU, and may let go of all it has") {
  auto model = tiny_model("metal");
  auto session = std::make_unique<Session>(model, 0);
  tiny::feed(*session, {1, 2});
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    int code = 1;
    try {
      tiny::feed(*session, {3});
    } catch (const std::runtime_error& e) {
      code = says(e.what(), "'spawn'") ? 0 : 2;
    } catch (...) {
      code = 3;
    }
    try {
      model->backend().alloc(4);
      code = 4;
    } catch (const std::runtime_error&) {
    }
    session.reset();
    model.reset();
    ::_exit(code);
  }
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
  tiny::feed(*session, {3});
  CHECK(session->position() == 3);
}

TEST_CASE("a GPU that lacks what kernels need is refused with the reason") {
  const auto reason = [](std::string_view options) {
    const Options chosen(options);
    return message_of([] { llama2cpp::make_metal_backend(); });
  };
  CHECK(says(reason("family=apple5"), "is not of the family Apple7 or a later one"));
  CHECK(says(reason("unified=off"), "has a memory of its own"));
  CHECK(says(reason("width=16"), "simdgroups of 16 threads"));
  for (const char* os : {"os=13", "os=14", "os=26"}) CHECK(reason(os).empty());
}

// As in a command-line program that is not linked with the system's graphics.
TEST_CASE("a GPU that is not the system's default for this program is found in the list of all") {
  const Options chosen("default=off");
  CHECK(message_of([] { llama2cpp::make_metal_backend(); }).empty());
}

TEST_CASE("the context of a session that says none is what half of the memory has room for, and a full one says so") {
  llama2cpp::Config config = tiny::config();
  config.seq_len = 100'000;
  const Options small("memory=40m,max_buffer=20m");
  const auto model = tiny::model(config, {.backend = "metal"});
  CHECK(model->context() < 100'000);
  CHECK(model->context() > 1000);
  CHECK(model->context_is_cut());
  const double row = 3.0 * 2 * 12 * sizeof(float);  // layers, keys and values, kv_dim
  CHECK(static_cast<double>(model->context()) * row <= 20e6 * 1.05);
  CHECK(says(message_of([&] { tiny::model(config, {.backend = "metal", .context = 100'000}); }),
             "ask for a smaller context"));
}
