// ThreadPool: persistent workers for fork-join regions of a few microseconds. A region costs no allocation and no
// lock. The caller is worker 0, and does what the others do not come to: whoever has no CPU holds nobody up.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "core/function_ref.h"

namespace llama2cpp {

class ThreadPool {
 public:
  // Starts a thread that does the work, or throws std::system_error. Tests pass their own.
  using StartThread = std::function<std::thread(std::function<void()> work)>;

  // Threads start with the first region. threads >= 1.
  explicit ThreadPool(int threads, StartThread start = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls work(w, n) once for each w in [0, n), on up to n threads at the same time, and returns when all have returned.
  // n is at most threads(): less where threads could not be started (the pool tries again now and then), and 1 where
  // `nanoseconds`, about what the work takes on one thread, are fewer than it would take to wake them. The first exception is rethrown. One region at a time: the owner keeps callers
  // apart (see Backend::Lease). A child of fork() has no workers and makes its own with its first region.
  void run(FunctionRef<void(int, int)> work, std::int64_t nanoseconds = kLong);

  // What a user should hear of, once: how many threads could be started, and why not all. Empty: nothing. May be asked
  // for after run() by whoever called it.
  bool has_warning() const { return !warning_.empty(); }
  std::string take_warning();

 private:
  struct Workers;
  class Waiter;
  using Clock = std::chrono::steady_clock;
  static constexpr std::int64_t kLong = 200'000;  // nanoseconds of work that are always worth waking workers

  void start_workers();
  void note(bool late);

  int threads_;
  StartThread start_;
  int most_spins_;  // 0 where there is no CPU for each thread: waiting by spinning would steal from the others
  std::unique_ptr<Workers> workers_;
  Clock::time_point start_again_{};  // not before: threads that could not be started
  std::string warning_;
  bool warned_ = false;
  Clock::duration pause_{};         // how long sleeping workers are left alone after the next late one
  Clock::time_point wake_again_{};  // not before
};

// What threads=None means: LLAMA2CPP_THREADS where that is set, which must be 1 to 1024 (else std::invalid_argument); else
// the least of the CPUs that this process may use and the cgroup's CPU quota, at least 1.
int default_threads();

// `wanted`, which must be 1 to 1024 (else std::invalid_argument); without it default_threads().
int checked_threads(std::optional<int> wanted);

// The range of [0, total) that worker `w` of `n` takes: contiguous, sizes differ by at most one.
struct Range {
  std::int64_t begin;
  std::int64_t end;
};
inline Range share(std::int64_t total, int w, int n) { return {total * w / n, total * (w + 1) / n}; }

}  // namespace llama2cpp
