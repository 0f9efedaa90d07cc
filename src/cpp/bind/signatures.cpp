// Signatures that inspect.signature and help() read. pybind11 puts one into a function's docstring, with C++'s types:
//   sample(self: llama2cpp._core.Sampler, logits: object, history: object = ()) -> int
// CPython looks for another, which it takes out of the docstring:
//   sample(self, logits, history=())
//   --
//
// So all of them are written anew, once, at the end of the module's initialisation. (It is not $self, as in Python's own
// functions: pybind11's have a __self__ that is none, and inspect would take the first parameter away.)
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <string_view>

#include "bind/bind.h"

namespace llama2cpp::bind {
namespace {

// Text up to a character that stands outside brackets and quotes; all of it, where there is none.
std::string_view up_to(std::string_view text, char wanted) {
  int depth = 0;
  char quote = '\0';
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != '\0') {
      if (c == '\\') ++i;
      if (c == quote) quote = '\0';
      continue;
    }
    if (depth == 0 && c == wanted) return text.substr(0, i);
    if (c == '\'' || c == '"') quote = c;
    if (c == '(' || c == '[' || c == '{') ++depth;
    if (c == ')' || c == ']' || c == '}') --depth;
  }
  return text;
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \n") + 1 - begin);
}

// "logits: object = ()" -> "logits=()"
std::string parameter(std::string_view text, std::string_view function) {
  std::string name(trimmed(up_to(text, ':')));
  const std::string_view before = up_to(text, '=');
  if (name == "arg0" && function == "__setstate__") name = "state";  // py::pickle gives it no name
  return before.size() == text.size() ? name : name + "=" + std::string(trimmed(text.substr(before.size() + 1)));
}

struct Doc {
  std::string parameters;  // as CPython writes them: "self, logits, history=()"
  std::string text;        // the rest
};

// Nothing for a docstring that does not begin with a signature, and for overloaded functions.
std::optional<Doc> parse(std::string_view name, std::string_view doc) {
  if (!doc.starts_with(name) || doc.size() == name.size() || doc[name.size()] != '(') return {};
  doc.remove_prefix(name.size() + 1);
  const std::string_view list = up_to(doc, ')');
  if (list.starts_with("*args")) return {};
  Doc parsed;
  for (std::string_view rest = list; !trimmed(rest).empty();) {
    const std::string_view one = up_to(rest, ',');
    parsed.parameters += (parsed.parameters.empty() ? "" : ", ") + parameter(one, name);
    rest.remove_prefix(std::min(rest.size(), one.size() + 1));
  }
  doc.remove_prefix(list.size());
  const std::size_t line_end = doc.find('\n');
  if (line_end != std::string_view::npos) parsed.text = trimmed(doc.substr(line_end));
  return parsed;
}

// The function of pybind11's in what a module's or a class's dictionary has; null for other things, Python's own functions too,
// whose docstrings are not to be freed.
PyCFunctionObject* function_in(py::handle value) {
  py::handle inner = value;
  if (PyInstanceMethod_Check(value.ptr())) inner = PyInstanceMethod_GET_FUNCTION(value.ptr());
  py::object of_static;  // keeps it
  if (py::isinstance<py::staticmethod>(value)) inner = of_static = value.attr("__func__");
  if (!PyCFunction_Check(inner.ptr())) return nullptr;
  PyObject* const self = PyCFunction_GET_SELF(inner.ptr());
  const std::string_view owner = self == nullptr ? "" : Py_TYPE(self)->tp_name;
  return owner.find("pybind11") == owner.npos ? nullptr : reinterpret_cast<PyCFunctionObject*>(inner.ptr());
}

void tidy(py::handle value) {
  PyCFunctionObject* const function = function_in(value);
  if (function == nullptr || function->m_ml->ml_doc == nullptr) return;
  PyMethodDef& method = *function->m_ml;
  const std::optional<Doc> doc = parse(method.ml_name, method.ml_doc);
  if (!doc) return;
  const std::string written = std::string(method.ml_name) + "(" + doc->parameters + ")\n--\n\n" + doc->text;
  auto* const text = static_cast<char*>(std::malloc(written.size() + 1));
  if (text == nullptr) throw std::bad_alloc();
  std::memcpy(text, written.c_str(), written.size() + 1);
  std::free(const_cast<char*>(method.ml_doc));  // pybind11's, by strdup; it frees ours in the same way
  method.ml_doc = text;
}

}  // namespace

void tidy_signatures(py::module_& module) {
  for (const auto& [name, value] : module.attr("__dict__").cast<py::dict>()) {
    tidy(value);
    if (!PyType_Check(value.ptr())) continue;
    for (const py::handle member : value.attr("__dict__").attr("values")()) tidy(member);
  }
}

}  // namespace llama2cpp::bind
