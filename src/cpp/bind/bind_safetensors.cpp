// Safetensors files of float32 arrays for Python; see llama2cpp.inside.cache_file.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/file_path.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/file.h"
#include "core/file_kind.h"
#include "io/safetensors.h"

namespace llama2cpp::bind {
namespace {

using Metadata = std::map<std::string, std::string, std::less<>>;

// What a file of these arrays begins with.
py::bytes header_of(const Metadata& metadata,
                    const std::vector<std::pair<std::string, Ints<"safetensors_header", "arrays">>>& f32) {
  std::vector<NamedShape> tensors;
  for (const auto& [name, shape] : f32) tensors.push_back({name, "F32", shape.values});
  return write_safetensors_header(metadata, tensors);
}

// Arrays by name, in the file's order, and the metadata. The arrays are writable: the file is read and not mapped.
py::tuple read_floats(const FilePath& path) {
  Buffer file;
  {
    const ReleasedGil released;
    file = Buffer::file(path.utf8, false);
  }
  const SafetensorsHeader header = read_safetensors_header(file);
  std::vector<std::pair<std::string, SafetensorsTensor>> tensors(header.tensors.begin(), header.tensors.end());
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.second.begin < b.second.begin; });
  py::dict arrays;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.dtype != "F32") {
      throw FormatError(cat("tensor '", name, "' is ", describe_tensor(tensor.dtype, tensor.shape), ", expected F32"));
    }
    const std::vector<py::ssize_t> shape(tensor.shape.begin(), tensor.shape.end());
    arrays[py::str(name)] = py::array(py::dtype::of<float>(), shape, file.data() + tensor.begin, keeper(file));
  }
  return py::make_tuple(arrays, header.metadata);
}

// All bytes of a file of text.
py::bytes read_file(const FilePath& path) {
  const File file(path.utf8);
  if (file.size() > kMostText) {
    throw FormatError(cat(file.path(), ": the file has ", file.size(), " bytes, expected at most ", kMostText));
  }
  auto bytes =
      py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(file.size())));
  if (!bytes) throw py::error_already_set();
  auto* const to = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(bytes.ptr()));
  const ReleasedGil released;
  file.read(0, {to, file.size()});
  return bytes;
}

}  // namespace

void register_safetensors(py::module_& module) {
  using py::arg;
  module.def("safetensors_header", &header_of, arg("metadata"), arg("arrays"));
  module.def("read_safetensors", &read_floats, arg("path"));
  module.def("read_file", &read_file, arg("path"));
  module.def(
      "check_file", [](const FilePath& path) { const File file(path.utf8); }, arg("path"));
  module.def(
      "find_stand_in",
      [](const py::bytes& start) {
        const std::string_view bytes = start;
        return find_stand_in({reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()});
      },
      arg("start"),
      "What stands in a file's place where a download went wrong, by its first bytes: a Git LFS pointer, an HTML page. "
      "Empty for anything else.");
}

}  // namespace llama2cpp::bind
