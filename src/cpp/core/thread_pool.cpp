// Fork-join by numbers: `started` says which region is on, and each worker's `claimed` and `finished` the last region of
// which it has had its share. Shares are claimed, by their worker or, if it does not come, by the caller.
#include "core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#include "core/check.h"
#include "core/quote.h"
#include "core/small_file.h"
#include "core/thread_number.h"

namespace llama2cpp {
namespace {

inline void pause() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb");
#endif
}

// Some 20 microseconds, longer than the gap between two ops of a forward, and a tenth of that.
constexpr int kMostSpins = 1000;
constexpr int kFewestSpins = 60;

// Sleeping workers that came too late are left alone for this long, twice as long each time, while the caller does short
// work alone: a wake-up costs some microseconds, and on a busy machine it comes to nothing.
constexpr auto kShortestPause = std::chrono::microseconds(20);
constexpr auto kLongestPause = std::chrono::milliseconds(4);

constexpr auto kStartAgainAfter = std::chrono::seconds(1);
constexpr int kMostThreads = 1024;

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
  // "quota period" in one file or in two; "max" or -1 where there is no limit.
  const std::string v2 = read_beginning("/sys/fs/cgroup/cpu.max", 64);
  const std::string v1 = read_beginning("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", 32) + " " +
                         read_beginning("/sys/fs/cgroup/cpu/cpu.cfs_period_us", 32);
  const std::string& text = v2.empty() ? v1 : v2;
  const char* const end = text.data() + text.size();
  std::int64_t quota = 0;
  std::int64_t period = 0;
  const auto parsed = std::from_chars(text.data(), end, quota);
  const char* const second = std::find_if(parsed.ptr, end, [](char c) { return c >= '0' && c <= '9'; });
  std::from_chars(second, end, period);
  if (quota > 0 && period > 0) return static_cast<int>((quota + period - 1) / period);
#endif
  return 0;
}

// In quotes; what is no ASCII, and may be no text, as question marks.
std::string printable(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<signed char>(c) < 0; }, '?');
  return quote(text);
}

std::thread start_thread(std::function<void()> work) { return std::thread(std::move(work)); }

}  // namespace

int default_threads() {
  const char* const wanted = std::getenv("LLAMA2CPP_THREADS");
  if (wanted != nullptr && *wanted != '\0') {
    int threads = 0;
    const char* const end = wanted + std::strlen(wanted);
    const auto [rest, error] = std::from_chars(wanted, end, threads);
    LLAMA2CPP_CHECK(error == std::errc() && rest == end && threads >= 1 && threads <= kMostThreads,
                    "the environment variable LLAMA2CPP_THREADS is ", printable(wanted), ", expected 1 to ",
                    kMostThreads);
    return threads;
  }
  const int cpus = usable_cpus();
  const int quota = cgroup_cpus();
  const int threads = quota > 0 && quota < cpus ? quota : cpus;
  return std::clamp(threads, 1, kMostThreads);
}

int checked_threads(std::optional<int> wanted) {
  LLAMA2CPP_CHECK(!wanted || (*wanted >= 1 && *wanted <= kMostThreads), "threads is ", wanted.value_or(0),
                  ", expected 1 to ", kMostThreads, ", or None");
  return wanted ? *wanted : default_threads();
}

// Waits for a number to change: spins as long as that has been worth it lately, then sleeps.
class ThreadPool::Waiter {
 public:
  explicit Waiter(int most_spins) : most_(most_spins), spins_(most_spins) {}

  // Whether it has changed while spinning.
  bool spin(const std::atomic<std::uint32_t>& number, std::uint32_t old) {
    for (int i = 0; i < spins_; ++i) {
      if (number.load(std::memory_order_acquire) != old) {
        spins_ = std::min(most_, 2 * spins_);
        return true;
      }
      pause();
    }
    if (number.load(std::memory_order_acquire) != old) return true;
    spins_ = std::max(std::min(most_, kFewestSpins), spins_ / 2);
    return false;
  }

 private:
  int most_;
  int spins_;
};

struct ThreadPool::Workers {
  struct Worker {
    alignas(64) std::atomic<std::uint32_t> claimed{0};  // number of the newest region whose share has been claimed
    std::atomic<std::uint32_t> finished{0};             // and of the newest that this worker has finished
    std::thread thread;
  };

  alignas(64) std::atomic<std::uint32_t> started{0};  // number of the newest region
  alignas(64) std::atomic<int> asleep{0};
  const FunctionRef<void(int, int)>* work = nullptr;
  int parts = 1;  // of the newest region
  std::atomic<bool> stop{false};
  std::mutex error_mutex;  // taken only when a share throws
  std::exception_ptr error;
  const int forks = fork_generation();
  Waiter caller;                                 // for workers to finish
  std::vector<std::unique_ptr<Worker>> workers;  // worker w is at w - 1

  explicit Workers(int most_spins) : caller(most_spins) {}

  // Whether the share of `region` is the one who asks's to do.
  static bool claim(Worker& worker, std::uint32_t region) {
    std::uint32_t before = region - 1;
    return worker.claimed.compare_exchange_strong(before, region, std::memory_order_acq_rel);
  }

  void do_share(int w) {
    try {
      (*work)(w, parts);
    } catch (...) {
      const std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  }

  // What worker `w` does all its life; `seen` is the region before its first.
  void serve(Worker& me, int w, std::uint32_t seen, int most_spins) {
    Waiter waiter(most_spins);
    while (true) {
      if (!waiter.spin(started, seen)) {
        asleep.fetch_add(1, std::memory_order_relaxed);
        started.wait(seen, std::memory_order_acquire);
        asleep.fetch_sub(1, std::memory_order_relaxed);
      }
      if (stop.load(std::memory_order_relaxed)) return;
      seen = started.load(std::memory_order_acquire);
      if (!claim(me, seen)) continue;
      do_share(w);
      me.finished.exchange(seen);  // see run()
      me.finished.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads, StartThread start)
    : threads_(threads),
      start_(start ? std::move(start) : StartThread(start_thread)),
      most_spins_(threads <= usable_cpus() ? kMostSpins : 0) {
  LLAMA2CPP_CHECK(threads >= 1 && threads <= kMostThreads, "threads is ", threads, ", expected 1 to ", kMostThreads);
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
  for (const auto& worker : workers_->workers) worker->thread.join();
}

void ThreadPool::start_workers() {
  if (workers_ && workers_->forks != fork_generation()) {
    static_cast<void>(workers_.release());
    start_again_ = {};
  }
  if (!workers_) {
    auto all = std::make_unique<Workers>(most_spins_);
    all->workers.reserve(static_cast<std::size_t>(threads_ - 1));
    workers_ = std::move(all);
  }
  Workers& all = *workers_;
  const auto missing = [&] { return static_cast<int>(all.workers.size()) + 1 < threads_; };
  if (!missing() || (start_again_ != Clock::time_point{} && Clock::now() < start_again_)) return;
  try {
    while (missing()) {
      const std::uint32_t seen = all.started.load();
      auto worker = std::make_unique<Workers::Worker>();
      worker->claimed = seen;
      worker->finished = seen;
      const int w = static_cast<int>(all.workers.size()) + 1;
      worker->thread =
          start_([&all, &me = *worker, w, seen, most_spins = most_spins_] { all.serve(me, w, seen, most_spins); });
      all.workers.push_back(std::move(worker));  // has room
    }
    start_again_ = {};
  } catch (const std::system_error& error) {
    start_again_ = Clock::now() + kStartAgainAfter;
    if (!std::exchange(warned_, true)) {
      warning_ = cat("only ", all.workers.size() + 1, " of ", threads_, " threads could be started (", error.what(),
                     "): the results are the same, and take longer. Is there a limit of threads (ulimit -u, a "
                     "container's pids)?");
    }
  }
}

std::string ThreadPool::take_warning() { return std::exchange(warning_, {}); }

void ThreadPool::run(FunctionRef<void(int, int)> work, std::int64_t nanoseconds) {
  if (threads_ == 1) return work(0, 1);
  start_workers();
  Workers& all = *workers_;
  const int others = static_cast<int>(all.workers.size());
  if (others == 0) return work(0, 1);
  const bool all_asleep = all.asleep.load(std::memory_order_relaxed) == others;
  if (all_asleep && nanoseconds < kLong && wake_again_ != Clock::time_point{} && Clock::now() < wake_again_) {
    return work(0, 1);
  }

  all.work = &work;
  all.parts = others + 1;
  const std::uint32_t region = all.started.load(std::memory_order_relaxed) + 1;
  // Notifying looks first whether anybody waits, which costs little. A plain store could become visible only after that
  // look, to one who went to sleep in between; what reads and writes at once cannot.
  all.started.exchange(region);
  all.started.notify_all();
  all.do_share(0);

  bool late = false;
  for (int w = 1; w <= others; ++w) {
    Workers::Worker& worker = *all.workers[static_cast<std::size_t>(w - 1)];
    if (worker.claimed.load(std::memory_order_relaxed) == region || !Workers::claim(worker, region)) continue;
    late = true;
    all.do_share(w);
    worker.finished.store(region, std::memory_order_relaxed);  // that of nobody else
  }
  for (const auto& worker : all.workers) {
    for (std::uint32_t last = worker->finished.load(std::memory_order_acquire); last != region;
         last = worker->finished.load(std::memory_order_acquire)) {
      if (all.caller.spin(worker->finished, last)) continue;
      late = true;
      worker->finished.wait(last, std::memory_order_acquire);
    }
  }
  note(late);
  if (const std::exception_ptr error = std::exchange(all.error, nullptr)) std::rethrow_exception(error);
}

void ThreadPool::note(bool late) {
  if (!late) {
    pause_ = {};
    wake_again_ = {};
    return;
  }
  pause_ = std::clamp<Clock::duration>(2 * pause_, kShortestPause, kLongestPause);
  wake_again_ = Clock::now() + pause_;
}

}  // namespace llama2cpp
