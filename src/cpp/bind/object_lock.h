// For bound objects that change when they are used, a sampler's generator say: threads that share one take turns.
#pragma once

#include <pybind11/pybind11.h>

#ifdef Py_GIL_DISABLED
#include <pybind11/critical_section.h>
#endif

namespace llama2cpp::bind {

namespace py = pybind11;

// With the GIL there is nothing to do: it is held. Without it, this locks the Python object that holds `object`.
template <class T>
class ObjectLock {
 public:
#ifdef Py_GIL_DISABLED
  explicit ObjectLock(const T& object)
      : self_(py::cast(const_cast<T*>(&object), py::return_value_policy::reference)), section_(self_) {}

 private:
  py::object self_;
  py::scoped_critical_section section_;
#else
  explicit ObjectLock(const T& /*object*/) {}
  ~ObjectLock() {}  // so that nobody thinks it is unused
#endif
};

}  // namespace llama2cpp::bind
