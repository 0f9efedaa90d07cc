// WaitLock: a mutex whose waiters can be interrupted, and which a child of fork() never finds held by a thread that is
// not there.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "core/function_ref.h"

namespace llama2cpp {

// How often a thread that waits, or computes for long, looks whether it is to stop.
inline constexpr auto kPollEvery = std::chrono::milliseconds(50);

// For waits that nothing should end.
inline constexpr auto kNoPoll = [] {};

class WaitLock {
 public:
  WaitLock() = default;
  ~WaitLock();
  WaitLock(const WaitLock&) = delete;
  WaitLock& operator=(const WaitLock&) = delete;

  // Whether it got the lock, without waiting. The thread that has it must not ask again.
  bool try_lock();
  // A waiter calls `poll` about every 50 ms, and ends waiting with what it throws.
  void lock(FunctionRef<void()> poll);
  // For what is held so shortly that nobody would want to end the waiting.
  void lock() { lock(kNoPoll); }
  // Only the thread that has it unlocks it.
  void unlock();

  // The number of the thread that has it (see this_thread_number), 0 for none.
  std::uint64_t owner() const { return owner_.load(std::memory_order_relaxed); }
  bool mine() const;

  // Whether the thread that locked it last before this one was lost in a fork(), and may have left what the lock guards
  // half written. For the one that has the lock.
  bool inherited() const { return inherited_; }

 private:
  struct Room;  // where waiters sleep; a child makes a new one
  Room& room();

  std::atomic<std::uint64_t> owner_{0};
  std::atomic<Room*> room_{nullptr};  // made when somebody has to wait
  bool inherited_ = false;
};

}  // namespace llama2cpp
