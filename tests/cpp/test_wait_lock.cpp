// WaitLock's promises: one owner at a time, waiters that can be called away, and children of fork() that find free what
// a thread had which is not there.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdio>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <sys/wait.h>
#include <unistd.h>
#endif

#include "core/thread_number.h"
#include "core/wait_lock.h"

using llama2cpp::WaitLock;

namespace {

// Has the lock until it is destroyed, in a thread of its own.
class Owner {
 public:
  explicit Owner(WaitLock& lock)
      : thread_([this, &lock] {
          lock.lock();
          has_.store(true);
          has_.notify_all();
          done_.wait(false);
          lock.unlock();
        }) {
    has_.wait(false);
  }
  ~Owner() {
    done_.store(true);
    done_.notify_all();
    thread_.join();
  }
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;

 private:
  std::atomic<bool> has_{false};
  std::atomic<bool> done_{false};
  std::thread thread_;
};

}  // namespace

TEST_CASE("threads have numbers of their own") {
  const std::uint64_t mine = llama2cpp::this_thread_number();
  std::uint64_t others = mine;
  std::thread([&] { others = llama2cpp::this_thread_number(); }).join();
  CHECK(mine != others);
  CHECK(mine == llama2cpp::this_thread_number());
  CHECK(llama2cpp::in_this_process(mine));
}

TEST_CASE("a lock has one owner at a time") {
  WaitLock lock;
  int count = 0;  // plain: the lock must order it
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5000; ++i) {
        const std::lock_guard guard(lock);
        ++count;
        if (i % 100 == 0) std::this_thread::yield();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(count == 20000);
  CHECK(lock.owner() == 0);
}

TEST_CASE("who has a lock") {
  WaitLock lock;
  CHECK_FALSE(lock.mine());
  REQUIRE(lock.try_lock());
  CHECK(lock.mine());
  CHECK_FALSE(lock.inherited());
  std::thread([&] {
    CHECK_FALSE(lock.try_lock());
    CHECK_FALSE(lock.mine());
  }).join();
  lock.unlock();
  const Owner owner(lock);
  CHECK_FALSE(lock.mine());
  CHECK(lock.owner() != 0);
}

TEST_CASE("a waiter is asked again and again, and may leave") {
  WaitLock lock;
  {
    const Owner owner(lock);
    int asked = 0;
    const auto leave = [&] {
      if (++asked == 3) throw std::runtime_error("enough");
    };
    CHECK_THROWS_WITH_AS(lock.lock(leave), "enough", std::runtime_error);
    CHECK(asked == 3);
    CHECK_FALSE(lock.mine());
  }
  CHECK_NOTHROW(lock.lock([] { throw std::runtime_error("never asked"); }));
  lock.unlock();
}

TEST_CASE("waiters are asked although others take the lock again and again") {
  WaitLock lock;
  std::atomic<bool> stop{false};
  std::atomic<int> turns{0};
  std::thread busy([&] {
    while (!stop) {
      const std::lock_guard guard(lock);
      ++turns;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  while (turns < 2) std::this_thread::yield();
  for (int i = 0; i < 5; ++i) {
    lock.lock([] {});
    lock.unlock();
  }
  stop = true;
  busy.join();
  CHECK(lock.owner() == 0);
}

#ifndef _WIN32
namespace {

bool good_in_child(const std::function<bool()>& work) {
  std::fflush(nullptr);  // else the child may print it again
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) _exit(work() ? 0 : 1);
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status == 0;
}

}  // namespace

TEST_CASE("a child of fork() finds free what another thread had, and is told") {
  WaitLock lock;
  const Owner owner(lock);
  const auto takes_it = [&] {
    lock.lock();
    const bool told = lock.inherited();
    lock.unlock();
    lock.lock();
    const bool told_again = lock.inherited();
    lock.unlock();
    return told && !told_again;
  };
  CHECK(good_in_child(takes_it));
  CHECK(good_in_child([&] { return good_in_child(takes_it) && takes_it(); }));
  CHECK_FALSE(lock.try_lock());  // here nothing has changed
}

TEST_CASE("a child of fork() keeps what its thread had") {
  WaitLock lock;
  const std::lock_guard guard(lock);
  CHECK(good_in_child([&] {
    bool others = true;
    std::thread([&] { others = lock.try_lock(); }).join();
    if (others || !lock.mine()) return false;
    lock.unlock();
    std::thread([&] {
      others = lock.try_lock();
      if (others) lock.unlock();
    }).join();
    lock.lock();
    return others && !lock.inherited();
  }));
}

TEST_CASE("a child of fork() can be made while others wait, and have waiters of its own") {
  WaitLock lock;
  std::thread waiter;
  {
    const Owner owner(lock);
    std::atomic<bool> asked{false};
    waiter = std::thread([&] {
      lock.lock([&] { asked = true; });
      lock.unlock();
    });
    while (!asked) std::this_thread::yield();
    CHECK(good_in_child([&] {
      lock.lock();
      bool got = false;
      std::atomic<bool> waits{false};
      std::thread other([&] {
        lock.lock([&] { waits = true; });
        got = true;
        lock.unlock();
      });
      while (!waits) std::this_thread::yield();
      lock.unlock();
      other.join();
      return got;
    }));
  }
  waiter.join();
  CHECK(lock.owner() == 0);
}
#endif
