// What the machine can do, for benchmarks: how fast it reads.
#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <string>

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

// With threads of its own: a model's lie idle meanwhile.
class Reading {
 public:
  Reading(int threads, std::size_t bytes) : pool_(threads), limit_(pool_, bytes) {}

  py::tuple measure(double seconds) {
    ReadLimit::Speed speed;
    {
      const ReleasedGil released;
      const std::lock_guard alone(mutex_);
      speed = limit_.measure(seconds);
    }
    warn_of(pool_);
    return py::make_tuple(speed.bytes_per_second, speed.reader);
  }
  std::size_t bytes() const { return limit_.bytes(); }

 private:
  ThreadPool pool_;
  ReadLimit limit_;
  std::mutex mutex_;
};

}  // namespace

void register_machine(py::module_& module) {
  using py::arg;
  py::class_<Reading>(module, "ReadLimit", "How fast so many threads read so many bytes, again and again.")
      .def(py::init([](Int<"ReadLimit", "threads", int> threads, Int<"ReadLimit", "bytes", std::size_t> bytes) {
             return std::make_unique<Reading>(threads, bytes);
           }),
           arg("threads"), arg("bytes"))
      .def("measure", &Reading::measure, arg("seconds") = 0.2,
           "Bytes a second of the best of several readers, and which.")
      .def_property_readonly("bytes", &Reading::bytes, "What is read: as many as were asked for, or 512 MB.");
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
