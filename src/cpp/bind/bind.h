// What module.cpp calls: one function for each room that Python sees.
#pragma once

#include <pybind11/pybind11.h>

namespace llama2cpp::bind {

namespace py = pybind11;

void register_errors(py::module_& module);
void register_text(py::module_& module);
void register_sampler(py::module_& module);
void register_model(py::module_& module);
void register_session(py::module_& module);

}  // namespace llama2cpp::bind
