#include "bind/tokenizer_dict.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "bind/integer.h"
#include "core/check.h"

namespace llama2cpp::bind {
namespace {

template <class Enum>
concept IsEnum = std::is_enum_v<Enum>;

// What is a dict in a list.
template <class Item>
concept IsItem = std::is_same_v<Item, AddedToken> || std::is_same_v<Item, Split> || std::is_same_v<Item, TextStep>;

py::str str_of(std::string_view text) { return {text.data(), text.size()}; }

py::object object_of(bool value) { return py::bool_(value); }
py::object object_of(std::int32_t value) { return py::int_(value); }
py::object object_of(float value) { return py::float_(static_cast<double>(value)); }
py::object object_of(double value) { return py::float_(value); }
py::object object_of(const std::string& text) { return py::bytes(text); }
py::object object_of(const Merge& merge) { return py::make_tuple(merge[0], merge[1], merge[2]); }
template <IsEnum Enum>
py::object object_of(Enum value) {
  return str_of(name_of(value));
}
template <class Item>
  requires IsItem<Item>
py::object object_of(const Item& item) {
  py::dict fields;
  visit_fields(item, [&](std::string_view name, const auto& value) { fields[str_of(name)] = object_of(value); });
  return fields;
}
template <class T>
py::object object_of(const std::vector<T>& values) {
  py::list list(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) list[i] = object_of(values[i]);
  return list;
}
// Each name is one str, which a pickle holds once.
template <IsEnum Enum>
py::object object_of(const std::vector<Enum>& values) {
  py::list names;
  for (const std::string_view name : kEnumNames<Enum>) names.append(str_of(name));
  py::list list(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) list[i] = py::object(names[static_cast<std::size_t>(values[i])]);
  return list;
}

// Where a value stands, for messages: merges[3][0], added[2].lstrip.
struct Where {
  std::string_view name;
  const Where* in = nullptr;
  std::size_t index = 0;  // in a list, if there is no name

  std::string text() const {
    if (in == nullptr) return std::string(name);
    return name.empty() ? cat(in->text(), "[", index, "]") : cat(in->text(), ".", name);
  }
};

[[noreturn]] void fail(const Where& where, std::string_view problem) {
  throw FormatError(cat("tokenizer: ", where.text(), " ", problem));
}

[[noreturn]] void refuse(const Where& where, py::handle found, std::string_view expected) {
  fail(where, cat("is ", shown(found), ", expected ", expected));
}

void read(const Where& where, py::handle object, bool& value) {
  if (!PyBool_Check(object.ptr())) refuse(where, object, "a bool");
  value = object.ptr() == Py_True;
}

void read(const Where& where, py::handle object, std::int32_t& value) {
  const std::optional<py::object> number = as_index(object);
  if (!number) refuse(where, object, "an integer");
  int overflow = 0;
  const long long found = PyLong_AsLongLongAndOverflow(number->ptr(), &overflow);
  if (overflow != 0 || !std::in_range<std::int32_t>(found)) refuse(where, object, "a 32-bit integer");
  value = static_cast<std::int32_t>(found);
}

void read(const Where& where, py::handle object, double& value) {
  if (PyBool_Check(object.ptr())) refuse(where, object, "a number");
  value = PyFloat_AsDouble(object.ptr());
  if (PyErr_Occurred() != nullptr) {
    if (PyErr_ExceptionMatches(PyExc_TypeError) == 0 && PyErr_ExceptionMatches(PyExc_OverflowError) == 0) {
      throw py::error_already_set();
    }
    PyErr_Clear();
    refuse(where, object, "a number");
  }
}

void read(const Where& where, py::handle object, float& value) {
  double number = 0;
  read(where, object, number);
  if (std::isfinite(number) && std::fabs(number) > static_cast<double>(std::numeric_limits<float>::max())) {
    refuse(where, object, "a 32-bit float");
  }
  value = static_cast<float>(number);
}

void read(const Where& where, py::handle object, std::string& text) {
  if (!PyBytes_Check(object.ptr())) refuse(where, object, "bytes");
  text.assign(PyBytes_AS_STRING(object.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(object.ptr())));
}

// The view lives as long as the object. Nothing for what is no str, or has lone surrogates, which no name has.
std::optional<std::string_view> name_in(py::handle object) {
  if (!PyUnicode_Check(object.ptr())) return {};
  Py_ssize_t size = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(object.ptr(), &size);
  if (text == nullptr) {
    PyErr_Clear();
    return {};
  }
  return std::string_view(text, static_cast<std::size_t>(size));
}

template <IsEnum Enum>
void read(const Where& where, py::handle object, Enum& value) {
  const std::optional<std::string_view> name = name_in(object);
  const std::optional<Enum> found = name ? find_named<Enum>(*name) : std::nullopt;
  if (!found) refuse(where, object, cat("one of: ", list_names<Enum>()));
  value = *found;
}

// A tuple of a list's or a tuple's items: nothing that is done with one of them can change it.
py::tuple items_of(const Where& where, py::handle object) {
  if (!PyList_Check(object.ptr()) && !PyTuple_Check(object.ptr())) refuse(where, object, "a list");
  auto items = py::reinterpret_steal<py::tuple>(PySequence_Tuple(object.ptr()));
  if (!items) throw py::error_already_set();
  return items;
}

void read(const Where& where, py::handle object, Merge& merge) {
  const py::tuple ids = items_of(where, object);
  if (ids.size() != merge.size()) {
    fail(where, cat("has ", ids.size(), " ids, expected 3: of the left piece, of the right one, and of both"));
  }
  for (std::size_t i = 0; i < merge.size(); ++i) read({{}, &where, i}, ids[i], merge[i]);
}

// The fields of a dict, taken out of a copy one by one.
class Fields {
 public:
  explicit Fields(py::handle dict) : fields_(py::reinterpret_steal<py::dict>(PyDict_Copy(dict.ptr()))) {
    if (!fields_) throw py::error_already_set();
  }

  py::object take(const Where& where, std::string_view name) {
    const py::str key = str_of(name);
    PyObject* const found = PyDict_GetItemWithError(fields_.ptr(), key.ptr());
    if (found == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (found == nullptr) fail(where, "is missing");
    auto value = py::reinterpret_borrow<py::object>(found);
    if (PyDict_DelItem(fields_.ptr(), key.ptr()) != 0) throw py::error_already_set();
    return value;
  }

  // What is left has no place.
  void end(std::string_view what) const {
    for (const auto& [name, value] : fields_) throw FormatError(cat("tokenizer: ", what, " has no ", shown(name)));
  }

 private:
  py::dict fields_;
};

template <class Item>
  requires IsItem<Item>
void read(const Where& where, py::handle object, Item& token) {
  if (!PyDict_Check(object.ptr())) refuse(where, object, "a dict");
  Fields fields(object);
  visit_fields(token, [&](std::string_view name, auto& value) {
    const Where inner{name, &where};
    read(inner, fields.take(inner, name), value);
  });
  fields.end(where.text());
}

template <class T>
void read(const Where& where, py::handle object, std::vector<T>& values) {
  const py::tuple items = items_of(where, object);
  values.clear();
  values.reserve(items.size());
  for (std::size_t i = 0; i < items.size(); ++i) read({{}, &where, i}, items[i], values.emplace_back());
}

}  // namespace

py::dict dict_of(const Vocabulary& vocabulary) {
  py::dict settings;
  settings["kind"] = str_of(kind_name(vocabulary));
  visit_settings(vocabulary,
                 [&](std::string_view name, const auto& value) { settings[str_of(name)] = object_of(value); });
  return settings;
}

Vocabulary vocabulary_of(const py::object& settings) {
  if (!PyDict_Check(settings.ptr())) {
    throw py::type_error(cat("a tokenizer's settings are a ", type_name(settings),
                             ", expected a dict, as Tokenizer.to_dict makes it; a pickle of an older version has to be "
                             "made again, from the tokenizer's file"));
  }
  Fields fields(settings);
  const py::object kind = fields.take({"kind"}, "kind");
  const std::optional<std::string_view> name = name_in(kind);
  std::optional<Vocabulary> vocabulary = name ? vocabulary_of_kind(*name) : std::nullopt;
  if (!vocabulary) refuse({"kind"}, kind, cat("one of: ", list_kinds()));
  visit_settings(*vocabulary, [&](std::string_view setting, auto& value) {
    read({setting}, fields.take({setting}, setting), value);
  });
  fields.end(*name);
  return *std::move(vocabulary);
}

py::dict settings_of_kinds() {
  py::dict kinds;
  for (const Vocabulary& vocabulary : all_kinds()) {
    py::list names;
    visit_settings(vocabulary, [&](std::string_view name, const auto&) { names.append(str_of(name)); });
    kinds[str_of(kind_name(vocabulary))] = py::tuple(names);
  }
  return kinds;
}

}  // namespace llama2cpp::bind
