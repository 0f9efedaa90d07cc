// All state is atomic and written by the one thread of a new child, before anything else runs there.
#include "core/thread_number.h"

#include <atomic>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace llama2cpp {
namespace {

struct Process {
  std::atomic<std::uint64_t> last_number{0};  // given to a thread
  std::atomic<std::uint64_t> last_before{0};  // the last that was given before the newest fork()
  std::atomic<std::uint64_t> survivor{0};     // the thread that called it
  std::atomic<int> forks{0};
};

Process& process() {
  static Process shared;
#ifndef _WIN32
  static const int registered = ::pthread_atfork(nullptr, nullptr, [] {
    shared.survivor.store(this_thread_number());
    shared.last_before.store(shared.last_number.load());
    shared.forks.fetch_add(1);
  });
  static_cast<void>(registered);
#endif
  return shared;
}

}  // namespace

std::uint64_t this_thread_number() {
  thread_local const std::uint64_t number = process().last_number.fetch_add(1) + 1;
  return number;
}

bool in_this_process(std::uint64_t thread_number) {
  const Process& all = process();
  return thread_number > all.last_before.load(std::memory_order_relaxed) ||
         thread_number == all.survivor.load(std::memory_order_relaxed);
}

int fork_generation() { return process().forks.load(std::memory_order_relaxed); }

}  // namespace llama2cpp
