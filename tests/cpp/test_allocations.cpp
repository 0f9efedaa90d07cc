// Every allocation of a call fails in turn: the call throws std::bad_alloc, what it worked on is as it was, and the next call
// gives the bits that it would have given. (The Python side of it is tests/engine/test_allocations.py.)
#include <doctest/doctest.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "io/json.h"
#include "model/session_file.h"
#include "tiny_model.h"

namespace {

constexpr long kOff = -1;
std::atomic<long> left{kOff};  // allocations until one fails

bool fails() {
  long now = left.load();
  while (now != kOff && !left.compare_exchange_weak(now, now == 0 ? kOff : now - 1)) {
  }
  return now == 0;
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  if (fails()) throw std::bad_alloc();
  if (bytes == 0) bytes = 1;
#ifdef _WIN32
  void* const memory = _aligned_malloc(bytes, alignment);
#else
  void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
#endif
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void release(void* memory) {
#ifdef _WIN32
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

}  // namespace

// The whole program's.
void* operator new(std::size_t bytes) { return allocate(bytes, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { release(memory); }
void operator delete(void* memory, std::size_t) noexcept { release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { release(memory); }

namespace {

using llama2cpp::Session;
using tiny::Bits;

// Calls until no allocation is left to fail; after each failure `unchanged` looks. Gives how many there were. Without so many
// of them at most the call may do.
template <class Call, class Look>
int fail_each(const Call& call, const Look& unchanged, int dispensable = 0) {
  for (int n = 0;; ++n) {
    bool thrown = false;
    left = n;
    try {
      call();
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    const bool reached = left.exchange(kOff) == kOff;
    if (!reached) {
      CHECK(!thrown);
      return n;
    }
    CAPTURE(n);
    if (!thrown) --dispensable;
    REQUIRE(dispensable >= 0);
    unchanged();
  }
}

std::string file_of(const Session& session) {
  std::string file;
  const auto add = [&](std::span<const std::byte> more) {
    file.append(reinterpret_cast<const char*>(more.data()), more.size());
  };
  llama2cpp::write_session(session, add, tiny::no_poll);
  return file;
}

}  // namespace

TEST_CASE("each allocation fails: a session is as it was and goes on with the same bits") {
  for (const int threads : {1, 3}) {
    CAPTURE(threads);
    const auto model = tiny::model(threads);
    Session session(model, 40);
    tiny::feed(session, tiny::tokens(9, 1));
    const std::string before = file_of(session);
    const auto more = tiny::tokens(12, 2);
    const Bits expected = [&] {
      const auto other = session.fork(tiny::no_poll);
      tiny::feed(*other, more);
      return tiny::logits_of(*other);
    }();
    const auto unchanged = [&] {
      CHECK((file_of(session) == before));
      const auto other = session.fork(tiny::no_poll);
      tiny::feed(*other, more);
      CHECK((tiny::logits_of(*other) == expected));
    };
    const auto again = [&] {
      session.rewind(0, tiny::no_poll);
      tiny::feed(session, tiny::tokens(9, 1));
    };

    CHECK(fail_each([&] { session.fork(tiny::no_poll); }, unchanged) > 3);
    CHECK(fail_each([&] { file_of(session); }, unchanged) > 3);
    CHECK(fail_each([&] { tiny::feed(session, more); }, unchanged) > 1);
    again();
    unchanged();
    CHECK(fail_each([&] { tiny::feed(session, {5}); }, unchanged) > 1);
    again();
    CHECK(fail_each([&] { const Session fresh(model, 40); }, unchanged) > 0);
    const auto load = [&] {
      const auto file = llama2cpp::Buffer::wrap(before.data(), before.size(), nullptr);
      const auto loaded = llama2cpp::read_session(model, file, 0, tiny::no_poll);
    };
    CHECK(fail_each(load, unchanged) > 3);
  }
}

TEST_CASE("each allocation fails: a model that could not be made, packed or run, and the next that can") {
  const auto run = [] {
    const auto model = tiny::model();
    Session session(model, 40);
    tiny::feed(session, tiny::tokens(5, 1));
    return tiny::logits_of(session);
  };
  const Bits expected = run();
  // A model remembers memory of a pass for the next one, if there is room to remember it.
  bool same = true;
  CHECK(fail_each([&] { same = run() == expected && same; }, [] {}, 1) > 100);
  CHECK(same);
  CHECK((run() == expected));

  // The first call of a model packs its weights.
  for (int n = 0; n < 200; ++n) {
    const auto model = tiny::model();
    Session session(model, 40);
    left = n;
    try {
      tiny::feed(session, tiny::tokens(5, 1));
    } catch (const std::bad_alloc&) {
      left = kOff;
      CHECK(session.position() == 0);
      tiny::feed(session, tiny::tokens(5, 1));
    }
    const bool all = left.exchange(kOff) != kOff;
    REQUIRE((tiny::logits_of(session) == expected));
    if (all) break;
  }
}

TEST_CASE("each allocation fails: JSON is an error and never another number") {
  const std::string text =
      R"({"a long name that is no small string \u00e4": [1.5, 123456789012345678901234567890.25, 1e-5]})";
  double found = 0;
  const auto read = [&] {
    found = -1;
    const llama2cpp::JsonDocument document(text, "a name that is no small string");
    for (const llama2cpp::Json member : document.root().members()) found = member.at(1).number();
  };
  CHECK(fail_each(read, [&] { CHECK(found == -1); }) > 3);
  CHECK(found == 123456789012345678901234567890.25);
  CHECK(fail_each([] { llama2cpp::cat("a text that is no small string ", 123456789, " ", 1.5, " and more"); }, [] {}) >
        0);
}
