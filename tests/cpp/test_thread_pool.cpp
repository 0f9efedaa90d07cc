// The pool's promises: each worker runs once per region, what it wrote can be seen afterwards, exceptions come back,
// barriers hold, and a forked child has workers of its own.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
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

// Runs a region and tells whether every worker ran exactly once.
bool each_ran_once(ThreadPool& pool) {
  std::vector<int> runs(static_cast<std::size_t>(pool.threads()), 0);  // plain ints: run() itself must order them
  pool.run([&](int w) { ++runs[static_cast<std::size_t>(w)]; });
  return runs == std::vector<int>(runs.size(), 1);
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
      pool.run([&](int w) {
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

TEST_CASE("an exception of any worker comes back, after all have finished") {
  for (const int threads : kThreads) {
    ThreadPool pool(threads);
    for (int thrower = 0; thrower < threads; ++thrower) {
      CAPTURE(threads);
      CAPTURE(thrower);
      std::vector<int> runs(static_cast<std::size_t>(threads), 0);
      const auto region = [&] {
        pool.run([&](int w) {
          ++runs[static_cast<std::size_t>(w)];
          if (w == thrower) throw std::runtime_error("worker " + std::to_string(w));
        });
      };
      CHECK_THROWS_WITH_AS(region(), ("worker " + std::to_string(thrower)).c_str(), std::runtime_error);
      CHECK(runs == std::vector<int>(runs.size(), 1));
      CHECK(each_ran_once(pool));  // and nothing of it is left
    }
  }
}

TEST_CASE("when all workers throw, one exception comes back") {
  ThreadPool pool(4);
  for (int i = 0; i < 100; ++i) CHECK_THROWS_AS(pool.run([](int w) { throw w; }), int);
  CHECK(each_ran_once(pool));
}

TEST_CASE("nobody passes a barrier before all have arrived") {
  for (const int threads : kThreads) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    constexpr int kRounds = 500;
    std::vector<int> round_of(static_cast<std::size_t>(threads), 0);  // plain ints: the barrier must order them
    std::atomic<int> wrong{0};
    pool.run([&](int w) {
      for (int round = 1; round <= kRounds; ++round) {
        round_of[static_cast<std::size_t>(w)] = round;
        pool.barrier();
        for (const int other : round_of) wrong += other == round ? 0 : 1;
        pool.barrier();
      }
    });
    CHECK(wrong == 0);
    CHECK(each_ran_once(pool));
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
