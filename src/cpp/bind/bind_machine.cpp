// What the machine can do, for benchmarks: how fast it reads.
#include <pybind11/pybind11.h>

#include <cstddef>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/available_memory.h"
#include "core/memory_needs.h"
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
  module.def(
      "need_memory",
      [](double bytes, const std::string& what, const std::string& advice) {
        if (bytes >= kWorthChecking) need_memory(bytes, what, "", advice);
      },
      arg("bytes"), arg("what"), arg("advice"),
      "Raises MemoryError, with both numbers, where so many bytes are not available. Few are not worth the question.");
  module.def("available_memory", &available_memory, "Bytes that this process can still take.");
}

}  // namespace llama2cpp::bind
