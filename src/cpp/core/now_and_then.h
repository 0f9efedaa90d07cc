// Something that a long computation does again and again, but not too often.
#pragma once

#include <chrono>

#include "core/function_ref.h"
#include "core/wait_lock.h"

namespace llama2cpp {

// Calls it at most every kPollEvery, however often it is asked to.
class NowAndThen {
 public:
  explicit NowAndThen(FunctionRef<void()> call) : call_(call) {}
  void operator()() {
    if (Clock::now() - called_ < kPollEvery) return;
    call_();
    called_ = Clock::now();
  }

 private:
  using Clock = std::chrono::steady_clock;
  FunctionRef<void()> call_;
  Clock::time_point called_ = Clock::now();
};

}  // namespace llama2cpp
