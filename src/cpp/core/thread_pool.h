// ThreadPool: persistent workers for fork-join regions of a few microseconds. A region costs no allocation and no
// lock: workers spin briefly on a counter and then sleep. The caller is worker 0.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>

#include "core/function_ref.h"

namespace llama2cpp {

class ThreadPool {
 public:
  // Threads start with the first region. threads >= 1.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls work(w) for each w in [0, threads) at the same time and returns when all have returned. The first exception
  // is rethrown. One region at a time: the owner keeps callers apart (see Backend::Lease). A child of fork() has no
  // workers and makes its own with its first region.
  void run(FunctionRef<void(int)> work);

  // Inside a region: returns when all workers have arrived. Only for work that does not throw.
  void barrier();

 private:
  struct Workers;

  int threads_;
  bool spin_;  // whether there is a CPU for each thread, so that waiting by spinning steals from no one
  std::unique_ptr<Workers> workers_;
};

// How many fork()s lie between this process and the one that first asked: what threads held or ran before the last of
// them is not here.
int fork_generation();

// What threads=None means: the least of the CPUs that this process may use and the cgroup's CPU quota, at least 1.
int default_threads();

// The range of [0, total) that worker `w` of `n` takes: contiguous, sizes differ by at most one.
struct Range {
  std::int64_t begin;
  std::int64_t end;
};
inline Range share(std::int64_t total, int w, int n) { return {total * w / n, total * (w + 1) / n}; }

}  // namespace llama2cpp
