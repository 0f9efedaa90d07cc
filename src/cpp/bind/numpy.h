// Between NumPy and the core: views that keep their owner alive, and ids from whatever a user passes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "core/buffer.h"

namespace llama2cpp::bind {

namespace py = pybind11;

// A Python object that holds a Buffer: the base of arrays which point into it.
inline py::capsule keeper(const Buffer& memory) {
  return {new Buffer(memory), [](void* p) { delete static_cast<Buffer*>(p); }};
}

// An array over some of a Buffer's floats, which keeps the memory alive.
inline py::array_t<float> float_array(const Buffer& memory, std::int64_t begin, std::vector<py::ssize_t> shape) {
  return py::array_t<float>(std::move(shape), reinterpret_cast<const float*>(memory.data()) + begin, keeper(memory));
}

inline std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

// One token id from an int or a NumPy integer. Throws std::invalid_argument that says what was received; whether the
// id is in the vocabulary is for the core to say.
inline std::int32_t to_id(py::handle object) {
  if (!PyIndex_Check(object.ptr()) || PyBool_Check(object.ptr())) {
    throw std::invalid_argument("a token id is " + std::string(py::repr(object)) + " (" + type_name(object) +
                                "), expected an integer");
  }
  const auto number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!number) throw py::error_already_set();
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0 || value < INT32_MIN || value > INT32_MAX) {
    throw std::invalid_argument("a token id is " + std::string(py::repr(object)) + ", which is no 32-bit integer");
  }
  return static_cast<std::int32_t>(value);
}

// Token ids from a sequence of integers or a one-dimensional integer array.
inline std::vector<std::int32_t> to_ids(py::handle object) {
  if (py::isinstance<py::array>(object)) {
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (array.ndim() != 1 || (array.dtype().kind() != 'i' && array.dtype().kind() != 'u')) {
      throw std::invalid_argument("token ids are an array of dtype " + std::string(py::str(array.dtype())) +
                                  " and shape " + std::string(py::str(array.attr("shape"))) +
                                  ", expected one dimension of integers");
    }
  } else if (py::isinstance<py::str>(object) || py::isinstance<py::bytes>(object) || !PySequence_Check(object.ptr())) {
    throw std::invalid_argument("token ids are of type " + type_name(object) +
                                ", expected a sequence of integers or an integer array");
  }
  std::vector<std::int32_t> ids;
  ids.reserve(py::len(object));
  for (const py::handle item : object) ids.push_back(to_id(item));
  return ids;
}

// The core takes paths in UTF-8, on Windows too; elsewhere these are the system's own bytes.
inline std::string utf8(const std::filesystem::path& path) {
  const std::u8string text = path.u8string();
  return {text.begin(), text.end()};
}

// A signal check for long calls: run with the GIL released, it takes the GIL and lets Python's handlers run.
inline void poll_signals() {
  const py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace llama2cpp::bind
