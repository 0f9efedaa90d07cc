// A thread that has to wait for a session is in one list, under one lock; no other thread is. A thread in the list sleeps: it
// releases none of its sessions and gets no other, so what is read there is true.
#include "model/session_lock.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/check.h"
#include "core/thread_number.h"
#include "model/session.h"

namespace llama2cpp {
namespace {

struct Waiter {
  std::uint64_t thread;
  Session* wanted;
};

// Of the whole process: hooks may use the sessions of any model.
struct Waiters {
  WaitLock lock;
  std::vector<Waiter> all;
  int forks = fork_generation();

  // The list, with `lock` held. The waiters of a fork()'s parent are not here.
  std::vector<Waiter>& here() {
    if (forks != fork_generation()) {
      std::construct_at(&all);  // half written, perhaps: the old one is left alone
      forks = fork_generation();
    }
    return all;
  }
};

Waiters& waiters() {
  static Waiters* const shared = new Waiters;  // never destroyed: daemon threads may wait while the process ends
  return *shared;
}

std::string name(const Session& session) {
  return cat("the session at position ", session.position(), " of ", session.context());
}

}  // namespace

// This thread's entry in the list.
class SessionLock::Waiting {
 public:
  explicit Waiting(Session& wanted) : me_(this_thread_number()), wanted_(wanted) { enter(); }
  ~Waiting() { leave(); }
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

  void enter() {
    const std::lock_guard lock(waiters().lock);
    std::vector<Waiter>& all = waiters().here();
    check(all);
    all.push_back({me_, &wanted_});
  }
  void leave() {
    const std::lock_guard lock(waiters().lock);
    std::erase_if(waiters().here(), [&](const Waiter& w) { return w.thread == me_; });
  }

 private:
  // Follows owner and wanted from here; throws if that leads back to this thread.
  void check(const std::vector<Waiter>& all) const {
    const Session* session = &wanted_;
    std::string others;
    for (std::size_t step = 0; step <= all.size(); ++step) {
      const std::uint64_t owner = session->lock_.owner();
      if (owner == me_) {
        throw std::runtime_error(cat("this call wants ", name(wanted_), ", whose own call waits for ", others,
                                     name(*session),
                                     ", which is in the middle of a call of this thread: hooks that use "
                                     "each other's sessions would wait for ever"));
      }
      const auto found = std::find_if(all.begin(), all.end(), [&](const Waiter& w) { return w.thread == owner; });
      if (found == all.end()) return;
      if (session != &wanted_) others += name(*session) + ", whose call waits for ";
      session = found->wanted;
    }
  }

  std::uint64_t me_;
  Session& wanted_;
};

SessionLock::SessionLock(Session& session, FunctionRef<void()> poll) : session_(&session) {
  if (session.lock_.try_lock()) return;
  if (session.lock_.mine()) {
    throw std::runtime_error("this session is in the middle of a call (a hook may use other sessions, not its own)");
  }
  Waiting waiting(session);
  session.lock_.lock([&] {
    waiting.leave();  // a signal handler that poll() calls may use sessions
    poll();
    waiting.enter();
  });
}

SessionLock::~SessionLock() {
  if (session_ != nullptr) session_->lock_.unlock();
}

}  // namespace llama2cpp
