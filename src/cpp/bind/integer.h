// Integer arguments and truth values: what a function takes for one, and what it says of the rest.
//
// pybind11's own caster goes through __int__ as well, which cuts NumPy's floats, Fraction and Decimal down; and its
// message names no argument. Int<"Session.rewind", "position"> takes what has __index__ (Python's and NumPy's integers
// and arrays of no dimensions), and everything else, True and False too, is a TypeError, or a ValueError beyond its type's
// range.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"

namespace llama2cpp::bind {

namespace py = pybind11;

inline std::string type_name(py::handle object) { return py::str(py::type::handle_of(object).attr("__name__")); }

// "2.5 (float)", cut where it is long.
inline std::string shown(py::handle object) {
  constexpr std::size_t kMost = 80;
  std::string text = py::repr(object);
  if (text.size() > kMost) text = std::string(py::str(py::str(text)[py::slice(0, kMost, 1)])) + "...";
  return text + " (" + type_name(object) + ")";
}

// Whether it is a truth value, Python's or another library's, which may have __index__: tensor(True).
inline bool is_bool(py::handle object) {
  if (PyBool_Check(object.ptr())) return true;
  if (PyLong_CheckExact(object.ptr()) || !py::hasattr(object, "dtype")) return false;
  const py::object dtype = object.attr("dtype");
  if (py::hasattr(dtype, "kind")) return py::object(dtype.attr("kind")).equal(py::str("b"));  // NumPy's
  return std::string(py::str(dtype)).ends_with("bool");
}

// The Python int of whatever has __index__; nothing for the rest, truth values among it.
inline std::optional<py::object> as_index(py::handle object) {
  if (!PyIndex_Check(object.ptr()) || is_bool(object)) return {};
  auto number = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (number) return number;
  PyErr_Clear();  // arrays have __index__ and refuse it where they are not one integer
  return {};
}

template <class T>
T to_integer(py::handle object, const char* function, const char* name) {
  const std::optional<py::object> number = as_index(object);
  if (!number) throw py::type_error(cat(function, ": ", name, " is ", shown(object), ", expected an integer"));
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number->ptr(), &overflow);
  if (overflow != 0 || !std::in_range<T>(value)) {
    throw py::value_error(cat(function, ": ", name, " is ", shown(object), ", which is out of range"));
  }
  return static_cast<T>(value);
}

// A string as a template argument.
template <std::size_t N>
struct Text {
  char data[N];
  consteval Text(const char (&text)[N]) {  // NOLINT: implicit, so that a literal will do
    for (std::size_t i = 0; i < N; ++i) data[i] = text[i];
  }
};

template <Text Function, Text Name, class T = std::int64_t>
struct Int {
  T value = 0;
  operator T() const { return value; }  // NOLINT: it stands for one
};

// A truth value: True and False, NumPy's too, and nothing else.
template <Text Function, Text Name>
struct Flag {
  bool value = false;
  operator bool() const { return value; }  // NOLINT: it stands for one
};

// A sequence of integers, or an array of one dimension.
template <Text Function, Text Name>
struct Ints {
  std::vector<std::int64_t> values;
};

}  // namespace llama2cpp::bind

namespace pybind11::detail {

template <llama2cpp::bind::Text Function, llama2cpp::bind::Text Name, class T>
struct type_caster<llama2cpp::bind::Int<Function, Name, T>> {
  using Type = llama2cpp::bind::Int<Function, Name, T>;
  PYBIND11_TYPE_CASTER(Type, const_name("int"));
  bool load(handle source, bool) {
    value.value = llama2cpp::bind::to_integer<T>(source, Function.data, Name.data);
    return true;
  }
  static handle cast(const Type& source, return_value_policy, handle) { return int_(source.value).release(); }
};

template <llama2cpp::bind::Text Function, llama2cpp::bind::Text Name>
struct type_caster<llama2cpp::bind::Flag<Function, Name>> {
  using Type = llama2cpp::bind::Flag<Function, Name>;
  PYBIND11_TYPE_CASTER(Type, const_name("bool"));
  bool load(handle source, bool) {
    const int truth = llama2cpp::bind::is_bool(source) ? PyObject_IsTrue(source.ptr()) : -1;
    if (truth < 0) {
      PyErr_Clear();
      throw type_error(llama2cpp::cat(Function.data, ": ", Name.data, " is ", llama2cpp::bind::shown(source),
                                      ", expected True or False"));
    }
    value.value = truth != 0;
    return true;
  }
  static handle cast(const Type& source, return_value_policy, handle) { return bool_(source.value).release(); }
};

template <llama2cpp::bind::Text Function, llama2cpp::bind::Text Name>
struct type_caster<llama2cpp::bind::Ints<Function, Name>> {
  using Type = llama2cpp::bind::Ints<Function, Name>;
  PYBIND11_TYPE_CASTER(Type, const_name("list[int]"));
  bool load(handle source, bool) {
    if (isinstance<str>(source) || isinstance<bytes>(source) || !isinstance<iterable>(source)) {
      throw type_error(llama2cpp::cat(Function.data, ": ", Name.data, " is ", llama2cpp::bind::shown(source),
                                      ", expected a sequence of integers"));
    }
    for (const handle item : reinterpret_borrow<iterable>(source)) {
      value.values.push_back(llama2cpp::bind::to_integer<std::int64_t>(item, Function.data, Name.data));
    }
    return true;
  }
  static handle cast(const Type& source, return_value_policy, handle) {
    list numbers;
    for (const std::int64_t number : source.values) numbers.append(number);
    return numbers.release();
  }
};

}  // namespace pybind11::detail
