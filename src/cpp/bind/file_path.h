// Paths from Python: str, bytes or os.PathLike, as the bytes that the core opens.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace llama2cpp::bind {

struct FilePath {
  std::string utf8;
};

}  // namespace llama2cpp::bind

namespace pybind11::detail {

// Not pybind11's caster for std::filesystem::path, which says of a path with a NUL byte that it is no path.
template <>
struct type_caster<llama2cpp::bind::FilePath> {
  PYBIND11_TYPE_CASTER(llama2cpp::bind::FilePath, const_name("os.PathLike | str | bytes"));

  bool load(handle path, bool /*convert*/) {
    value.utf8 = module_::import("os").attr("fsencode")(path).cast<std::string>();
    if (value.utf8.find('\0') == std::string::npos) return true;
    const object name = module_::import("os").attr("fspath")(path);
    throw value_error("the path " + std::string(repr(name)) + " has a NUL byte, which no file's name has");
  }
};

}  // namespace pybind11::detail
