// Writers of files and folders for Python; see llama2cpp.common.new_files.
#include <pybind11/pybind11.h>
#include <pybind11/stl/filesystem.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "bind/bind.h"
#include "bind/file_path.h"
#include "bind/integer.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/file_writer.h"

namespace llama2cpp::bind {
namespace {

// A writer that can be given up before Python collects it.
template <class Writer>
class Closable {
 public:
  template <class... Arguments>
  explicit Closable(const FilePath& path, Arguments... arguments) {
    const ReleasedGil released;
    writer_ = std::make_unique<Writer>(path.utf8, arguments...);
  }

  std::filesystem::path temporary_path() { return to_native(open().temporary_path()); }

  void write(const py::buffer& data) {
    const py::buffer_info info = data.request();
    py::ssize_t expected = info.itemsize;
    for (py::ssize_t i = info.ndim; i-- > 0; expected *= info.shape[static_cast<std::size_t>(i)]) {
      LLAMA2CPP_CHECK(info.size == 0 || info.strides[static_cast<std::size_t>(i)] == expected,
                      "data is not contiguous");
    }
    Writer& writer = open();
    const ReleasedGil released;
    writer.write({static_cast<const std::byte*>(info.ptr), static_cast<std::size_t>(info.size * info.itemsize)});
  }

  void commit() {
    Writer& writer = open();
    {
      const ReleasedGil released;
      writer.commit();
    }
    writer_.reset();
  }

  void close() { writer_.reset(); }

 private:
  Writer& open() {
    LLAMA2CPP_CHECK(writer_ != nullptr, "the writer is closed");
    return *writer_;
  }

  std::unique_ptr<Writer> writer_;
};

using Files = Closable<FileWriter>;
using Folders = Closable<FolderWriter>;

}  // namespace

void register_files(py::module_& module) {
  using py::arg;
  py::class_<Files>(module, "FileWriter", py::is_final())
      .def(py::init<const FilePath&>(), arg("path"))
      .def_property_readonly("temporary_path", &Files::temporary_path)
      .def("write", &Files::write, arg("data"))
      .def("commit", &Files::commit)
      .def("close", &Files::close);
  py::class_<Folders>(module, "FolderWriter", py::is_final())
      .def(py::init<const FilePath&, Flag<"FolderWriter", "exchange">>(), arg("path"), arg("exchange") = true)
      .def_property_readonly("temporary_path", &Folders::temporary_path)
      .def("commit", &Folders::commit)
      .def("close", &Folders::close);
}

}  // namespace llama2cpp::bind
