// llama2cpp_ops.soft: the software Metal device's options, counters and live objects.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "soft_metal.h"

inline void add_soft_device(pybind11::module_& ops) {
  namespace py = pybind11;
  py::module_ module = ops.def_submodule("soft");
  py::register_local_exception<soft::Fault>(module, "Fault", PyExc_RuntimeError);
  module.def(
      "set_options", [](const std::string& text) { soft::set_options(soft::parse_options(text)); }, py::arg("text"),
      "All of them: what the text does not name is as at first.");
  module.def("counters", [] {
    const soft::Counters all = soft::counters();
    py::dict dict;
    dict["commits"] = all.commits;
    dict["waits"] = all.waits;
    dict["encoders"] = all.encoders;
    dict["dispatches"] = all.dispatches;
    dict["threadgroups"] = all.threadgroups;
    dict["threads"] = all.threads;
    dict["bytes_read"] = all.bytes_read;
    dict["bytes_written"] = all.bytes_written;
    dict["accesses"] = all.accesses;
    dict["libraries"] = all.libraries;
    dict["pipelines"] = all.pipelines;
    dict["buffers"] = all.buffers;
    dict["buffer_bytes"] = all.buffer_bytes;
    return dict;
  });
  module.def("reset_counters", &soft::reset_counters);
  module.def(
      "live_objects",
      [](const std::string& kind) { return kind.empty() ? soft::live_objects() : soft::live_objects(kind); },
      py::arg("kind") = "");
  module.def("describe_live_objects", &soft::describe_live_objects);
  module.def("take_late_faults", &soft::take_late_faults, "Those found where nothing can be thrown.");
}
