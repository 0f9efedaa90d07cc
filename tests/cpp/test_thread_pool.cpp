// The pool's promises: each share is done once in every region, what it wrote can be seen afterwards, exceptions come
// back, threads that come late or cannot be started hold nobody up, and a forked child has workers of its own.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "core/thread_pool.h"

using llama2cpp::Range;
using llama2cpp::ThreadPool;

namespace {

constexpr int kThreads[] = {1, 2, 3, 4, 5};

// Runs a region and tells whether every share was done exactly once, whatever their number.
bool each_ran_once(ThreadPool& pool) {
  struct Share {
    int runs = 0;  // plain ints: run() itself must order them
    int of = 0;
  };
  std::vector<Share> shares(static_cast<std::size_t>(pool.threads()));
  pool.run([&](int w, int n) {
    Share& mine = shares[static_cast<std::size_t>(w)];
    ++mine.runs;
    mine.of = n;
  });
  const int n = shares[0].of;
  bool good = n >= 1 && n <= pool.threads();
  for (int w = 0; w < pool.threads(); ++w) {
    const Share& each = shares[static_cast<std::size_t>(w)];
    good = good && each.runs == (w < n ? 1 : 0) && each.of == (w < n ? n : 0);
  }
  return good;
}

}  // namespace

TEST_CASE("every worker runs once in every region") {
  for (const int threads : kThreads) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    bool all = true;
    for (int region = 0; region < 2000; ++region) all = all && each_ran_once(pool);
    CHECK(all);
  }
}

TEST_CASE("workers that fell asleep wake up") {
  ThreadPool pool(3);
  for (int region = 0; region < 5; ++region) {
    CHECK(each_ran_once(pool));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_CASE("the caller is worker 0, and may be another thread each time") {
  ThreadPool pool(3);
  for (int region = 0; region < 20; ++region) {
    std::thread caller([&] {
      std::thread::id first;
      pool.run([&](int w, int) {
        if (w == 0) first = std::this_thread::get_id();
      });
      CHECK(first == std::this_thread::get_id());
    });
    caller.join();
  }
}

TEST_CASE("a pool that never ran can be dropped") {
  for (const int threads : kThreads) CHECK_NOTHROW(ThreadPool{threads});
}

TEST_CASE("a pool has 1 to 1024 threads") {
  for (const int threads : {0, -1, 1025}) {
    CAPTURE(threads);
    CHECK_THROWS_AS(ThreadPool{threads}, std::invalid_argument);
  }
}

TEST_CASE("an exception of any share comes back, after all have finished") {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    for (int thrower = 0; thrower < threads; ++thrower) {
      CAPTURE(threads);
      CAPTURE(thrower);
      std::vector<int> runs(static_cast<std::size_t>(threads), 0);
      std::atomic<int> shares{0};
      const auto region = [&] {
        pool.run([&](int w, int n) {
          ++runs[static_cast<std::size_t>(w)];
          shares = n;
          if (w == std::min(thrower, n - 1)) throw std::runtime_error("this share");
        });
      };
      CHECK_THROWS_WITH_AS(region(), "this share", std::runtime_error);
      CHECK(std::count(runs.begin(), runs.end(), 1) == shares);
      CHECK(std::count(runs.begin(), runs.end(), 0) == threads - shares);
      CHECK(each_ran_once(pool));  // and nothing of it is left
    }
  }
}

TEST_CASE("when all workers throw, one exception comes back") {
  ThreadPool pool(4);
  for (int i = 0; i < 100; ++i) CHECK_THROWS_AS(pool.run([](int w, int) { throw w; }), int);
  CHECK(each_ran_once(pool));
}

// Starts threads until there are `most`, and then fails as the system does where a limit is reached.
class Limited {
 public:
  explicit Limited(int most) : most_(most) {}
  std::thread operator()(std::function<void()> work) const {
    ++*attempts_;
    if (*started_ == most_) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
    ++*started_;
    return std::thread(std::move(work));
  }
  int attempts() const { return *attempts_; }
  int started() const { return *started_; }

 private:
  int most_;
  std::shared_ptr<int> attempts_ = std::make_shared<int>(0);
  std::shared_ptr<int> started_ = std::make_shared<int>(0);
};

TEST_CASE("a pool goes on with the threads that could be started, and says so once") {
  for (const int threads : {2, 3, 5, 16}) {
    for (int started = 0; started + 1 < threads; ++started) {  // the first cannot be started, the second, ...
      CAPTURE(threads);
      CAPTURE(started);
      const Limited limited(started);
      ThreadPool pool(threads, limited);
      bool all = true;
      for (int region = 0; region < 200; ++region) all = all && each_ran_once(pool);
      CHECK(all);
      CHECK(pool.threads() == threads);
      CHECK(limited.started() == started);
      CHECK(limited.attempts() <= started + 2);  // not again for each region
      CHECK(pool.has_warning());
      const std::string warning = pool.take_warning();
      CHECK(warning.find("only " + std::to_string(started + 1) + " of " + std::to_string(threads) + " threads") == 0);
      CHECK(each_ran_once(pool));
      CHECK_FALSE(pool.has_warning());
    }
  }
}

TEST_CASE("a later region tries again to start the threads that are missing") {
  auto refuse = std::make_shared<bool>(true);
  ThreadPool pool(4, [refuse](std::function<void()> work) {
    if (*refuse) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
    return std::thread(std::move(work));
  });
  CHECK(each_ran_once(pool));
  CHECK_FALSE(pool.take_warning().empty());
  *refuse = false;
  const auto shares = [&] {
    std::atomic<int> of{0};
    pool.run([&](int, int n) { of = n; });
    return of.load();
  };
  int most = 0;
  for (int i = 0; i < 1000 && most != 4; ++i) {
    most = std::max(most, shares());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  CHECK(most == 4);
  CHECK(pool.take_warning().empty());
}

TEST_CASE("a worker that gets no CPU holds nobody up") {
  for (const int threads : {2, 5}) {
    std::atomic<bool> may_run{false};
    ThreadPool pool(threads, [&](std::function<void()> work) {
      return std::thread([&may_run, work = std::move(work)] {
        may_run.wait(false);
        work();
      });
    });
    bool all = true;
    for (int region = 0; region < 100; ++region) all = all && each_ran_once(pool);
    CHECK(all);
    may_run = true;
    may_run.notify_all();
    for (int region = 0; region < 100; ++region) all = all && each_ran_once(pool);
    CHECK(all);
  }
}

TEST_CASE("shares cover the whole, in order, and differ by at most one") {
  for (const std::int64_t total : {0, 1, 2, 15, 16, 17, 1000}) {
    for (int n = 1; n <= 5; ++n) {
      std::int64_t next = 0;
      for (int w = 0; w < n; ++w) {
        const Range range = llama2cpp::share(total, w, n);
        CHECK(range.begin == next);
        CHECK(range.end - range.begin >= total / n);
        CHECK(range.end - range.begin <= (total + n - 1) / n);
        next = range.end;
      }
      CHECK(next == total);
    }
  }
}

TEST_CASE("the default number of threads is one that a pool accepts") {
  ThreadPool pool(llama2cpp::default_threads());
  CHECK(each_ran_once(pool));
}

#ifndef _WIN32
TEST_CASE("a forked child makes workers of its own, and so does its child") {
  for (const int threads : kThreads) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    for (const bool started : {false, true}) {  // forked before and after the pool's threads exist
      CAPTURE(started);
      if (started) CHECK(each_ran_once(pool));
      std::fflush(nullptr);  // else the child may print it again
      const pid_t child = fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        bool good = each_ran_once(pool) && each_ran_once(pool);
        const pid_t grandchild = fork();
        if (grandchild == 0) _exit(each_ran_once(pool) ? 0 : 1);
        int status = 1;
        good = good && grandchild > 0 && waitpid(grandchild, &status, 0) == grandchild && status == 0;
        _exit(good ? 0 : 1);
      }
      int status = 1;
      REQUIRE(waitpid(child, &status, 0) == child);
      CHECK(status == 0);
      CHECK(each_ran_once(pool));  // the parent's are still there
    }
  }
}

TEST_CASE("a forked child goes on where it can start no threads") {
  for (const bool ran : {false, true}) {  // the parent's pool, before
    CAPTURE(ran);
    auto refuse = std::make_shared<bool>(false);
    ThreadPool pool(3, [refuse](std::function<void()> work) {
      if (*refuse) throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again));
      return std::thread(std::move(work));
    });
    if (ran) CHECK(each_ran_once(pool));
    *refuse = true;
    std::fflush(nullptr);
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) _exit(each_ran_once(pool) && each_ran_once(pool) && pool.has_warning() ? 0 : 1);
    int status = 1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
  }
}

TEST_CASE("a forked child may drop a pool whose threads stayed with the parent") {
  auto pool = std::make_unique<ThreadPool>(3);
  CHECK(each_ran_once(*pool));
  std::fflush(nullptr);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    pool.reset();
    _exit(0);
  }
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}
#endif
