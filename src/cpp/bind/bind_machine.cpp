// What the machine can do, for benchmarks: how fast it reads.
#include <pybind11/pybind11.h>

#include <cstddef>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/read_bandwidth.h"
#include "core/thread_pool.h"

namespace llama2cpp::bind {
namespace {

double bandwidth(int threads, std::size_t bytes, double seconds) {
  ThreadPool pool(threads);
  const ReleasedGil released;
  const double read = read_bandwidth(pool, bytes, seconds);
  warn_of(pool);
  return read;
}

}  // namespace

void register_machine(py::module_& module) {
  using py::arg;
  module.def(
      "read_bandwidth",
      [](Int<"read_bandwidth", "threads", int> threads, Int<"read_bandwidth", "bytes", std::size_t> bytes,
         double seconds) { return bandwidth(threads, bytes, seconds); },
      arg("threads"), arg("bytes"), arg("seconds") = 0.2,
      "Bytes a second that threads read together, each one stream through its share of so many bytes.");
}

}  // namespace llama2cpp::bind
