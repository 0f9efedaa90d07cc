// The core's exceptions as Python's: FormatError is a ValueError, ContextFullError a RuntimeError, and the operating
// system's errors are OSErrors with errno and file name.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>

#include "bind/bind.h"
#include "core/check.h"
#include "core/write_target.h"

namespace llama2cpp::bind {

namespace {

// Control characters of a path or of a file's texts, escaped: a message goes to terminals and logs.
py::object without_controls(const py::object& error) {
  const py::object text = py::module_::import("builtins").attr("ValueError").attr("__str__")(error);
  if (py::cast<bool>(text.attr("isprintable")())) return text;
  const py::object is_control = py::module_::import("unicodedata").attr("category");
  py::list shown;
  for (const py::handle c : text) {
    const bool control = std::string(py::str(is_control(c))) == "Cc";
    shown.append(control ? py::object(c.attr("encode")("unicode_escape").attr("decode")("ascii"))
                         : py::reinterpret_borrow<py::object>(c));
  }
  return py::str("").attr("join")(shown);
}

}  // namespace

void register_errors(py::module_& module) {
  const auto format_error = py::register_exception<FormatError>(module, "FormatError", PyExc_ValueError);
  format_error.doc() =
      "A file is damaged, of another kind or not supported: what was expected, what was found, and where.";
  format_error.attr("__str__") = py::cpp_function(&without_controls, py::is_method(format_error), py::name("__str__"));
  py::register_exception<ContextFullError>(module, "ContextFullError", PyExc_RuntimeError).doc() =
      "A session has no room for the tokens it was given. It is as it was before the call.";

  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const RefusedPathError& e) {
      const py::tuple arguments = py::make_tuple(e.code().value(), e.reason(), e.path());
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    } catch (const std::system_error& e) {
      // A file that could not be opened or mapped for want of memory: as for any other memory.
      if (e.code() == std::errc::not_enough_memory) return PyErr_SetString(PyExc_MemoryError, e.what());
      // The core throws with the path as the message; what() is "path: meaning of the code".
      std::string path = e.what();
      const std::string meaning = ": " + e.code().message();
      if (path.ends_with(meaning)) path.resize(path.size() - meaning.size());
      const py::tuple arguments = py::make_tuple(e.code().value(), e.code().message(), path);
      PyErr_SetObject(PyExc_OSError, arguments.ptr());
    } catch (const std::runtime_error& e) {
      // pybind11 says "Could not allocate list object!" and its like, with Python's own error set or not.
      if (!std::string_view(e.what()).starts_with("Could not allocate ")) throw;
      PyErr_SetString(PyExc_MemoryError, e.what());
    }
  });
}

}  // namespace llama2cpp::bind
