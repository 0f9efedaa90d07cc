// What the machine can do, for benchmarks: how fast it reads.
#include <pybind11/pybind11.h>

#include "bind/bind.h"
#include "bind/released_gil.h"
#include "core/read_bandwidth.h"

namespace llama2cpp::bind {

void register_machine(py::module_& module) {
  using py::arg;
  module.def("read_bandwidth", &read_bandwidth, arg("threads"), arg("bytes"), arg("seconds") = 0.2,
             py::call_guard<ReleasedGil>(),
             "Bytes a second that threads read together, each one stream through its share of so many bytes.");
}

}  // namespace llama2cpp::bind
