// Waiting for sessions and for the backend: it can be ended, and threads that would wait for each other for ever are
// told so.
#include <doctest/doctest.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "model/session_file.h"
#include "model/unembed.h"
#include "tiny_model.h"

namespace {

using llama2cpp::Backend;
using llama2cpp::Hooks;
using llama2cpp::HookSpan;
using llama2cpp::Model;
using llama2cpp::Point;
using llama2cpp::Session;
using llama2cpp::SessionLock;
using llama2cpp::Tensor;
using llama2cpp::Work;

// Runs `begin`, which gets something, in a thread of its own, and keeps it until this is destroyed.
class Holder {
 public:
  using Keep = std::function<void()>;
  explicit Holder(std::function<void(const Keep&)> begin)
      : thread_([this, begin = std::move(begin)] {
          begin([this] {
            has_.store(true);
            has_.notify_all();
            done_.wait(false);
          });
        }) {
    has_.wait(false);
  }
  ~Holder() {
    done_.store(true);
    done_.notify_all();
    thread_.join();
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;

 private:
  std::atomic<bool> has_{false};
  std::atomic<bool> done_{false};
  std::thread thread_;
};

const auto interrupt = [] { throw std::runtime_error("interrupted"); };

// The call waits, and ends with what its poll throws.
void check_interrupted(const std::function<void()>& call) {
  CHECK_THROWS_WITH_AS(call(), "interrupted", std::runtime_error);
}

Hooks hook(const Model& model, std::function<void()> work) {
  Hooks hooks(model.config(), model.backend(),
              [work = std::move(work)](Point, std::int64_t, const Tensor&, const HookSpan&) { work(); });
  hooks.watch(Point::resid_post, 0);
  return hooks;
}

// Feeds one token.
void step(Session& session, const Hooks& hooks, llama2cpp::FunctionRef<void()> poll = tiny::no_poll) {
  const std::int32_t token[] = {3};
  const Work work{&session, token, nullptr};
  llama2cpp::run({&work, 1}, hooks, poll);
}

}  // namespace

TEST_CASE("waiting for a session's turn can be ended, in every call that takes it") {
  const auto model = tiny::model(2);
  Session session(model, 0);
  Session other(model, 0);
  tiny::feed(session, {1, 2});
  const auto logits = tiny::logits_of(session);
  {
    const Holder holder([&](const Holder::Keep& keep) { step(session, hook(*model, keep)); });
    check_interrupted([&] { step(session, {}, interrupt); });
    check_interrupted([&] {
      const std::int32_t tokens[] = {3, 4, 5};
      const Work work[] = {{&other, tokens, nullptr}, {&session, tokens, nullptr}};
      llama2cpp::run(work, {}, interrupt);
    });
    check_interrupted([&] { session.rewind(0, interrupt); });
    check_interrupted([&] { session.fork(interrupt); });
    const auto path = std::filesystem::temp_directory_path() / "llama2cpp_test_turn";
    check_interrupted([&] { llama2cpp::save_session(session, path.string(), interrupt); });
    CHECK_FALSE(std::filesystem::exists(path));
    CHECK(session.position() == 2);  // looking waits for nothing
    CHECK(session.tokens() == std::vector<std::int32_t>{1, 2});
    CHECK(tiny::logits_of(session) == logits);
    CHECK(other.position() == 0);
    CHECK_NOTHROW(step(other, {}, interrupt));  // and is free
  }
  CHECK(session.position() == 3);
  CHECK_NOTHROW(session.fork(interrupt));  // nothing to wait for
}

TEST_CASE("waiting for the backend's lease can be ended, in every call that takes it") {
  const auto model = tiny::model(tiny::config(), {.threads = 2, .pack = "never"});
  const auto unpacked = tiny::model(tiny::config(), {.threads = 1, .pack = "always"});
  const std::vector<float> x(static_cast<std::size_t>(model->config().dim), 1.0F);
  std::vector<float> logits(static_cast<std::size_t>(model->config().vocab_size));
  for (const auto& each : {model, unpacked}) {
    Session session(each, 0);
    {
      const Holder holder([&](const Holder::Keep& keep) {
        const Backend::Lease lease(each->backend(), tiny::no_poll);
        keep();
      });
      check_interrupted([&] { step(session, {}, interrupt); });
      check_interrupted([&] { llama2cpp::unembed(*each, x, true, logits, interrupt); });
      check_interrupted([&] { const Backend::Lease lease(each->backend(), interrupt); });
    }
    CHECK(session.position() == 0);
    CHECK_NOTHROW(step(session, {}, interrupt));
  }
}

TEST_CASE("waiting for another thread's packing can be ended") {
  const auto model = tiny::model(tiny::config(), {.threads = 1, .pack = "always"});
  const Holder lease([&](const Holder::Keep& keep) {
    const Backend::Lease mine(model->backend(), tiny::no_poll);
    keep();
  });
  std::atomic<bool> waits{false};
  std::atomic<bool> stop{false};
  std::thread packer([&] {  // has the packing's lock, and waits for the lease
    CHECK_THROWS_WITH(model->prepare([&] {
      waits = true;
      if (stop) throw std::runtime_error("stopped");
    }),
                      "stopped");
  });
  while (!waits) std::this_thread::yield();
  check_interrupted([&] { model->prepare(interrupt); });
  check_interrupted([&] { Model(*model, {}, false, interrupt); });
  stop = true;
  packer.join();
}

TEST_CASE("a hook's end waits for the lease, which can be ended, and leaves it let go") {
  const auto model = tiny::model(2);
  Session session(model, 0);
  tiny::feed(session, {1});
  std::unique_ptr<Holder> holder;
  const Hooks hooks = hook(*model, [&] {
    holder = std::make_unique<Holder>([&](const Holder::Keep& keep) {
      const Backend::Lease lease(model->backend(), tiny::no_poll);
      keep();
    });
  });
  check_interrupted([&] { step(session, hooks, interrupt); });
  CHECK(session.position() == 1);
  holder.reset();
  CHECK_NOTHROW(step(session, {}, interrupt));  // the lease is free
  CHECK(session.position() == 2);
}

TEST_CASE("a hook's exception comes through although another thread has the lease") {
  const auto model = tiny::model(2);
  Session session(model, 0);
  std::unique_ptr<Holder> holder;
  const Hooks hooks = hook(*model, [&] {
    holder = std::make_unique<Holder>([&](const Holder::Keep& keep) {
      const Backend::Lease lease(model->backend(), tiny::no_poll);
      keep();
    });
    throw std::runtime_error("from the hook");
  });
  CHECK_THROWS_WITH_AS(step(session, hooks), "from the hook", std::runtime_error);
  holder.reset();
  CHECK_NOTHROW(step(session, {}, interrupt));
}

TEST_CASE("hooks that use each other's sessions in a circle: one of them is told, the others go on") {
  const auto model = tiny::model(2);
  const auto another_model = tiny::model(1);
  for (const std::size_t threads : {2U, 3U, 5U}) {
    CAPTURE(threads);
    std::vector<std::unique_ptr<Session>> sessions;
    for (std::size_t i = 0; i < threads; ++i) {
      sessions.push_back(std::make_unique<Session>(i % 2 == 0 ? model : another_model, 0));
      for (std::size_t t = 0; t < i; ++t) tiny::feed(*sessions[i], {1});  // at positions that tell them apart
    }
    std::barrier all_in(static_cast<std::ptrdiff_t>(threads));
    std::mutex mutex;
    std::vector<std::string> errors;
    std::vector<std::thread> running;
    for (std::size_t i = 0; i < threads; ++i) {
      running.emplace_back([&, i] {
        Session& next = *sessions[(i + 1) % threads];
        try {
          step(*sessions[i], hook(sessions[i]->model(), [&] {
            all_in.arrive_and_wait();
            step(next, {});
          }));
        } catch (const std::runtime_error& error) {
          const std::lock_guard lock(mutex);
          errors.push_back(error.what());
        }
      });
    }
    for (std::thread& thread : running) thread.join();
    REQUIRE(errors.size() == 1);
    CHECK(errors[0].find("would wait for ever") != std::string::npos);
    for (std::size_t i = 0; i < threads; ++i) {  // by position: the others have not moved on yet
      CHECK(errors[0].find("the session at position " + std::to_string(i) + " of") != std::string::npos);
    }
    std::int64_t moved = 0;
    for (std::size_t i = 0; i < threads; ++i) moved += sessions[i]->position() - static_cast<std::int64_t>(i);
    // Of each thread that was not told its own step and its hook's.
    CHECK(moved == static_cast<std::int64_t>(2 * (threads - 1)));
  }
}

TEST_CASE("a chain of threads that wait is no circle") {
  const auto model = tiny::model(1);
  Session a(model, 0);
  Session b(model, 0);
  std::atomic<bool> waits{false};
  std::thread waiter;
  {
    const Holder holder([&](const Holder::Keep& keep) { step(a, hook(*model, keep)); });
    waiter = std::thread([&] {  // has b, waits for a
      step(b, hook(*model, [&] { step(a, {}, [&] { waits = true; }); }));
    });
    while (!waits) std::this_thread::yield();
    check_interrupted([&] { step(b, {}, interrupt); });
  }
  waiter.join();
  CHECK(a.position() == 2);
  CHECK(b.position() == 1);
}

#ifndef _WIN32
TEST_CASE("a child of fork() is held up by nothing that its parent's threads were in the middle of") {
  const auto model = tiny::model(tiny::config(), {.threads = 2, .pack = "always"});
  const auto expected = [&] {
    Session session(tiny::model(tiny::config(), {.threads = 1}), 0);
    tiny::feed(session, {1, 2, 3});
    return tiny::logits_of(session);
  }();
  Session session(model, 0);
  const Holder lease([&](const Holder::Keep& keep) {
    const Backend::Lease mine(model->backend(), tiny::no_poll);
    keep();
  });
  std::atomic<bool> stop{false};
  std::atomic<bool> packs{false};
  std::thread packer([&] {  // in the middle of packing
    CHECK_THROWS(model->prepare([&] {
      packs = true;
      if (stop) throw std::runtime_error("stopped");
    }));
  });
  while (!packs) std::this_thread::yield();
  std::thread turn([&] {  // in the middle of a call, waiting for the packing
    CHECK_THROWS(step(session, {}, [&] {
      if (stop) throw std::runtime_error("stopped");
    }));
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::fflush(nullptr);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    tiny::feed(session, {1, 2, 3});
    _exit(tiny::logits_of(session) == expected && session.position() == 3 ? 0 : 1);
  }
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  stop = true;
  packer.join();
  turn.join();
}
#endif
