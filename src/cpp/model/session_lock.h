// SessionLock: a session does one thing at a time. Threads that would wait for each other for ever are told so instead.
#pragma once

#include <cstdint>
#include <utility>

#include "core/function_ref.h"
#include "core/wait_lock.h"

namespace llama2cpp {

class Session;

class SessionLock {
 public:
  // Waits while another thread has the session; `poll` is called about every 50 ms and may throw to end the wait. Throws
  // std::runtime_error if this thread has the session already (a hook may use other sessions, not its own), and if its
  // owner waits, directly or through others, for a session that this thread has: hooks that use each other's sessions.
  SessionLock(Session& session, FunctionRef<void()> poll);
  ~SessionLock();
  SessionLock(SessionLock&& other) noexcept : session_(std::exchange(other.session_, nullptr)) {}
  SessionLock& operator=(SessionLock&&) = delete;

 private:
  class Waiting;
  Session* session_;
};

}  // namespace llama2cpp
