// Between NumPy and the core: views that keep their owner alive, and ids from whatever a user passes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind/integer.h"
#include "core/buffer.h"
#include "core/memory_needs.h"

namespace llama2cpp::bind {

namespace py = pybind11;

// Dense float32 of any shape.
using FloatRows = py::array_t<float, py::array::c_style>;

// A Python object that holds a Buffer: the base of arrays which point into it.
inline py::capsule keeper(const Buffer& memory) {
  auto held = std::make_unique<Buffer>(memory);
  py::capsule capsule(held.get(), [](void* p) { delete static_cast<Buffer*>(p); });
  held.release();  // it is the capsule's now
  return capsule;
}

// An array that holds anything. Of a large one it is asked first whether there is so much memory: NumPy takes it unasked, and
// the system gives it, until it is touched.
template <class Number>
py::array_t<Number, py::array::c_style> new_array(const std::vector<py::ssize_t>& shape, const char* what) {
  double bytes = sizeof(Number);
  for (const py::ssize_t n : shape) bytes *= static_cast<double>(n);
  if (bytes >= kWorthChecking) need_memory(bytes, what, "", "ask for less at a time");
  return py::array_t<Number, py::array::c_style>(shape);
}

// An array over some of a Buffer's floats, which keeps the memory alive.
inline py::array_t<float> float_array(const Buffer& memory, std::int64_t begin, std::vector<py::ssize_t> shape) {
  return py::array_t<float>(std::move(shape), reinterpret_cast<const float*>(memory.data()) + begin, keeper(memory));
}

// The same of float16.
inline py::array half_array(const Buffer& memory, std::int64_t begin, std::vector<py::ssize_t> shape) {
  return {py::dtype("e"), std::move(shape), memory.data() + begin * 2, keeper(memory)};
}

// One token id from an int, a NumPy integer or an array of no dimensions. Throws std::invalid_argument that says what was
// received; whether the id is in the vocabulary is for the core to say.
inline std::int32_t to_id(py::handle object) {
  const std::optional<py::object> number = as_index(object);
  if (!number) throw std::invalid_argument("a token id is " + shown(object) + ", expected an integer");
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number->ptr(), &overflow);
  if (overflow != 0 || value < INT32_MIN || value > INT32_MAX) {
    throw std::invalid_argument("a token id is " + shown(object) + ", which is no 32-bit integer");
  }
  return static_cast<std::int32_t>(value);
}

// A list of one row, as `tolist` makes it of an array [1, T]: the row. Everything else as it is.
inline py::object only_row(py::handle object) {
  if ((PyList_Check(object.ptr()) || PyTuple_Check(object.ptr())) && py::len(object) == 1) {
    const py::object row = py::reinterpret_borrow<py::sequence>(object)[0];
    if (PyList_Check(row.ptr()) || PyTuple_Check(row.ptr()) ||
        (py::hasattr(row, "ndim") && py::object(row.attr("ndim")).equal(py::int_(1)))) {
      return row;
    }
  }
  return py::reinterpret_borrow<py::object>(object);
}

// Bytes in memory are text that has not been decoded, and their numbers are no ids.
inline bool is_bytes_like(py::handle object) {
  if (PyBytes_Check(object.ptr()) || PyByteArray_Check(object.ptr())) return true;
  return PyMemoryView_Check(object.ptr()) && py::object(object.attr("itemsize")).equal(py::int_(1));
}

// What holds token ids in order, as something to iterate over: an array or a tensor [T] or [1, T], a list, any iterable.
inline py::iterable id_items(py::handle given) {
  const py::object object = only_row(given);
  const bool is_array = py::isinstance<py::array>(object);
  if (is_array || py::hasattr(object, "__array__")) {  // a tensor's library need not be imported for it
    const py::array array = is_array ? py::reinterpret_borrow<py::array>(object)
                                     : py::array(py::module_::import("numpy").attr("asarray")(object));
    const bool flat = array.ndim() == 1 || (array.ndim() == 2 && array.shape(0) == 1);
    if (!flat || (array.dtype().kind() != 'i' && array.dtype().kind() != 'u')) {
      throw std::invalid_argument("token ids are an array of dtype " + std::string(py::str(array.dtype())) +
                                  " and shape " + std::string(py::str(array.attr("shape"))) +
                                  ", expected one dimension of integers");
    }
    // Scalars of the array's own type, so that no width or byte order is cut down unseen.
    return array.attr("flat");
  }
  if (is_bytes_like(object)) {
    throw py::type_error(
        "token ids are " + shown(object) +
        ", and the numbers of bytes are no ids: decode() it to a str, and encode that with a tokenizer");
  }
  if (py::isinstance<py::str>(object) || !py::isinstance<py::iterable>(object)) {
    throw std::invalid_argument("token ids are of type " + type_name(object) +
                                ", expected a sequence of integers or an integer array");
  }
  return py::reinterpret_borrow<py::iterable>(object);
}

inline std::vector<std::int32_t> to_ids(py::handle object) {
  std::vector<std::int32_t> ids;
  for (const py::handle item : id_items(object)) ids.push_back(to_id(item));
  return ids;
}

}  // namespace llama2cpp::bind
