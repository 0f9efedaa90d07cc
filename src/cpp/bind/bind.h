// What module.cpp calls: one function for each room that Python sees.
#pragma once

#include <pybind11/pybind11.h>

namespace llama2cpp {
class Model;
}

namespace llama2cpp::bind {

namespace py = pybind11;

void register_errors(py::module_& module);
void register_text(py::module_& module);
void register_sampler(py::module_& module);
void register_session(py::module_& module);
void register_model(py::module_& module);

// Model.forward, which lives with the sessions that it feeds.
py::list forward_many(const Model& model, const py::sequence& rows);

}  // namespace llama2cpp::bind
