// What long calls and waits do now and then: let Python's signal handlers run, and pass on what users should hear of.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "backend/backend.h"
#include "bind/released_gil.h"

namespace llama2cpp::bind {

namespace py = pybind11;

// Run with the GIL released, it takes the GIL and lets Python's handlers run.
inline constexpr auto poll_signals = [] {
  sleep_if_shutting_down();
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
};

// Passes on what `source`, a Backend or a ThreadPool, has to say. Throws where the user has made errors of warnings.
template <class Source>
void warn_of(Source& source) {
  if (!source.has_warning()) return;
  sleep_if_shutting_down();
  const py::gil_scoped_acquire gil;
  const std::string text = source.take_warning();
  if (!text.empty() && PyErr_WarnEx(PyExc_RuntimeWarning, text.c_str(), 1) != 0) throw py::error_already_set();
}

// Both, for calls that use a backend.
class Poll {
 public:
  explicit Poll(Backend& backend) : backend_(backend) {}
  void operator()() const {
    warn_of(backend_);
    poll_signals();
  }

 private:
  Backend& backend_;
};

}  // namespace llama2cpp::bind
