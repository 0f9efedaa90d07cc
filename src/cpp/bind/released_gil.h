// Lets go of the GIL while the core computes. pybind11's own guard ends the process if a daemon thread still computes
// when the interpreter shuts down: asked for the GIL then, Python (before 3.14) ends the thread by unwinding its stack,
// and a destructor that may not throw turns that into std::terminate.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace llama2cpp::bind {

inline bool shutting_down() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

// For a thread that is about to ask for the GIL: if the interpreter shuts down, it sleeps until the process is over, as
// Python 3.14 has it.
inline void sleep_if_shutting_down() {
  while (shutting_down()) std::this_thread::sleep_for(std::chrono::hours(1));
}

class ReleasedGil {
 public:
  ReleasedGil() : state_(PyEval_SaveThread()) {}
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

  // Python may unwind this thread from in here, if it begins to shut down while we wait.
  ~ReleasedGil() noexcept(false) {
    sleep_if_shutting_down();
    PyEval_RestoreThread(state_);
  }

 private:
  PyThreadState* state_;
};

}  // namespace llama2cpp::bind
