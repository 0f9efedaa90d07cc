// Fork-join with two counters: `started` says which region is on, `unfinished` how many workers are still in it.
#include "core/thread_pool.h"

#include <fstream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#ifndef _WIN32
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "core/check.h"

namespace llama2cpp {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb");
#endif
}

// About 20 microseconds: longer than the gap between two ops of a forward, shorter than anyone would notice.
constexpr int kSpins = 1000;

// Counts the fork()s that led to this process, so that a pool can tell that its threads stayed with the parent.
std::atomic<int>& fork_count() {
  static std::atomic<int> count{0};
#ifndef _WIN32
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1); });
  static_cast<void>(registered);
#endif
  return count;
}

int usable_cpus() {
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 ? 1 : static_cast<int>(cores);
}

// CPUs' worth of time that the cgroup allows, rounded up; 0 where there is no limit.
int cgroup_cpus() {
#ifdef __linux__
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0.0;
  if (v2 >> quota >> period && quota != "max" && period > 0.0) {
    return static_cast<int>((std::strtod(quota.c_str(), nullptr) + period - 1.0) / period);
  }
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double microseconds = -1.0;
  if (v1_quota >> microseconds && v1_period >> period && microseconds > 0.0 && period > 0.0) {
    return static_cast<int>((microseconds + period - 1.0) / period);
  }
#endif
  return 0;
}

}  // namespace

int fork_generation() { return fork_count().load(std::memory_order_relaxed); }

int default_threads() {
  const int cpus = usable_cpus();
  const int quota = cgroup_cpus();
  const int threads = quota > 0 && quota < cpus ? quota : cpus;
  return threads < 1 ? 1 : threads;
}

struct ThreadPool::Workers {
  alignas(64) std::atomic<std::uint32_t> started{0};    // number of the newest region
  alignas(64) std::atomic<std::int32_t> unfinished{0};  // workers still in it, the caller not counted
  alignas(64) std::atomic<std::int32_t> arrived{0};     // at the barrier
  alignas(64) std::atomic<std::uint32_t> barriers{0};   // barriers passed
  const FunctionRef<void(int)>* work = nullptr;
  std::atomic<bool> stop{false};
  std::mutex error_mutex;  // taken only when a worker throws
  std::exception_ptr error;
  int forks = fork_generation();
  std::vector<std::thread> threads;
};

ThreadPool::ThreadPool(int threads) : threads_(threads), spin_(threads <= usable_cpus()) {
  LLAMA2CPP_CHECK(threads >= 1 && threads <= 1024, "threads is ", threads, ", expected 1 to 1024");
  fork_generation();  // counts from here on
}

ThreadPool::~ThreadPool() {
  if (!workers_) return;
  if (workers_->forks != fork_generation()) {
    // The threads stayed in the parent process: neither join nor destroy what they look like here.
    static_cast<void>(workers_.release());
    return;
  }
  workers_->stop.store(true);
  workers_->started.fetch_add(1);
  workers_->started.notify_all();
  for (std::thread& thread : workers_->threads) thread.join();
}

void ThreadPool::run(FunctionRef<void(int)> work) {
  if (threads_ == 1) return work(0);
  if (workers_ && workers_->forks != fork_generation()) static_cast<void>(workers_.release());
  if (!workers_) {
    workers_ = std::make_unique<Workers>();
    Workers& all = *workers_;
    for (int w = 1; w < threads_; ++w) {
      all.threads.emplace_back([&all, w, spin = spin_] {
        for (std::uint32_t seen = 0;; ++seen) {
          for (int i = 0; spin && i < kSpins && all.started.load(std::memory_order_acquire) == seen; ++i) pause();
          all.started.wait(seen, std::memory_order_acquire);
          if (all.stop.load(std::memory_order_relaxed)) return;
          try {
            (*all.work)(w);
          } catch (...) {
            const std::lock_guard lock(all.error_mutex);
            if (!all.error) all.error = std::current_exception();
          }
          if (all.unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) all.unfinished.notify_one();
        }
      });
    }
  }

  Workers& all = *workers_;
  all.work = &work;
  all.unfinished.store(threads_ - 1, std::memory_order_relaxed);
  all.started.fetch_add(1, std::memory_order_release);
  all.started.notify_all();
  std::exception_ptr mine;
  try {
    work(0);
  } catch (...) {
    mine = std::current_exception();
  }
  for (int i = 0; spin_ && i < kSpins && all.unfinished.load(std::memory_order_acquire) != 0; ++i) pause();
  for (std::int32_t left = all.unfinished.load(std::memory_order_acquire); left != 0;
       left = all.unfinished.load(std::memory_order_acquire)) {
    all.unfinished.wait(left, std::memory_order_acquire);
  }
  if (!mine) mine = std::exchange(all.error, nullptr);
  all.error = nullptr;
  if (mine) std::rethrow_exception(mine);
}

void ThreadPool::barrier() {
  if (threads_ == 1) return;
  Workers& all = *workers_;
  const std::uint32_t passed = all.barriers.load(std::memory_order_acquire);
  if (all.arrived.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
    all.arrived.store(0, std::memory_order_relaxed);
    all.barriers.fetch_add(1, std::memory_order_release);
    all.barriers.notify_all();
    return;
  }
  for (int i = 0; spin_ && i < kSpins && all.barriers.load(std::memory_order_acquire) == passed; ++i) pause();
  all.barriers.wait(passed, std::memory_order_acquire);
}

}  // namespace llama2cpp
