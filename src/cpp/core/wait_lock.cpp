// The owner's number is the lock. It is the same word in a child of fork(), where it may name a thread that is not
// there: then it counts as free. Sleeping is only a way to spend the time, and what is left of it by a fork is left alone.
#include "core/wait_lock.h"

#include <condition_variable>
#include <mutex>

#include "core/thread_number.h"

namespace llama2cpp {

struct WaitLock::Room {
  const int forks = fork_generation();
  std::atomic<int> waiters{0};
  std::mutex mutex;
  std::condition_variable freed;
};

WaitLock::~WaitLock() {
  Room* const room = room_.load();
  if (room != nullptr && room->forks == fork_generation()) delete room;
}

WaitLock::Room& WaitLock::room() {
  Room* there = room_.load();
  while (there == nullptr || there->forks != fork_generation()) {  // an old one may be locked for ever
    auto fresh = std::make_unique<Room>();
    if (room_.compare_exchange_strong(there, fresh.get())) return *fresh.release();
  }
  return *there;
}

bool WaitLock::mine() const { return owner() == this_thread_number(); }

bool WaitLock::try_lock() {
  std::uint64_t before = 0;
  const std::uint64_t me = this_thread_number();
  while (before == 0 || !in_this_process(before)) {
    const bool lost = before != 0;
    if (!owner_.compare_exchange_strong(before, me)) continue;
    inherited_ = lost;
    return true;
  }
  return false;
}

void WaitLock::lock(FunctionRef<void()> poll) {
  if (try_lock()) return;
  using Clock = std::chrono::steady_clock;
  auto poll_at = Clock::now() + kPollEvery;
  while (true) {
    Room& waiting = room();  // anew each time: poll() may have forked
    {
      std::unique_lock inside(waiting.mutex);
      // Counted before the lock is tried again: a thread that releases it after that sees that somebody waits.
      waiting.waiters.fetch_add(1);
      const bool got = try_lock();
      if (!got) waiting.freed.wait_until(inside, poll_at);
      waiting.waiters.fetch_sub(1);
      if (got) return;
    }
    if (try_lock()) return;
    if (Clock::now() < poll_at) continue;
    poll();
    poll_at = Clock::now() + kPollEvery;
  }
}

void WaitLock::unlock() {
  owner_.store(0);
  Room* const waiting = room_.load();
  if (waiting == nullptr || waiting->forks != fork_generation() || waiting->waiters.load() == 0) return;
  { const std::lock_guard asleep(waiting->mutex); }  // the threads that are counted are asleep now
  waiting->freed.notify_one();
}

}  // namespace llama2cpp
