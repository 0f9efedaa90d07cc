// Weights packed into panels for Python, which writes them to files: see src/llama2cpp/export/panel_file.py.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "format/llm_int8.h"
#include "format/panel_formats.h"
#include "io/panel_file.h"
#include "io/panel_vocabulary.h"
#include "model/model.h"
#include "model/pack_weight.h"
#include "text/tokenizer.h"

namespace llama2cpp::bind {
namespace {

using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

const Weight& stored_weight(const Model& model, const std::string& name) {
  const auto found = model.checkpoint().weights.find(name);
  if (found == model.checkpoint().weights.end()) throw py::key_error(name);
  return found->second;
}

py::object array_of(std::span<const std::int32_t> numbers) {
  if (numbers.empty()) return py::none();
  return py::array_t<std::int32_t>(static_cast<py::ssize_t>(numbers.size()), numbers.data());
}

// What a file says of a matrix, and the small arrays beside it.
py::dict panel_facts(const Weight& stored) {
  const Weight weight = as_in_panel_file(stored);
  py::dict facts;
  facts["format"] = std::string(weight.format->name);
  facts["rows"] = weight.rows;
  facts["cols"] = weight.cols;
  facts["group"] = weight.group;
  if (weight.format->form == PanelForm::llm_int8) facts["outlier_threshold"] = weight.outlier_threshold;
  facts["bytes"] = stored_bytes(weight);
  const auto* const order = reinterpret_cast<const std::int32_t*>(weight.order.data());
  facts["order"] = array_of({order, weight.order ? static_cast<std::size_t>(weight.cols) : 0});
  const bool has_outliers = weight.format->form == PanelForm::llm_int8;
  facts["outlier_columns"] = has_outliers ? array_of(fixed_outliers(weight)) : py::none();
  return facts;
}

// uint8 [bytes], a read-only view of memory of its own, or of the file that holds panels.
py::array pack(Weight weight, Backend& backend) {
  {
    const ReleasedGil released;
    pack_for_file(weight, backend, Poll(backend));
  }
  warn_of(backend);
  ByteArray view(std::vector<py::ssize_t>{static_cast<py::ssize_t>(weight.panels.size())},
                 reinterpret_cast<const std::uint8_t*>(weight.panels.data()), keeper(weight.panels));
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

// Panels of one of a model's weights. The CPU makes them where the model's own backend knows none.
py::array pack_of_model(const Model& model, const std::string& name) {
  const Weight& weight = stored_weight(model, name);
  if (model.backend().packs()) return pack(weight, model.backend());
  const std::shared_ptr<Backend> cpu = make_backend("cpu", 0);
  return pack(weight, *cpu);
}

// The JSON of a file's metadata, and (name, dtype, shape, bytes) of each tensor beside it.
py::tuple panel_tokenizer(const Tokenizer& tokenizer) {
  const StoredVocabulary stored = store_vocabulary(tokenizer.vocabulary());
  py::list tensors;
  for (const VocabularyTensor& tensor : stored.tensors) {
    const auto shape = py::tuple(py::cast(tensor.shape));
    tensors.append(py::make_tuple(tensor.name, tensor.dtype, shape, py::bytes(tensor.bytes)));
  }
  return py::make_tuple(stored.settings, tensors);
}

// Packs rows that have been encoded, of whatever they are.
class PanelPacker {
 public:
  explicit PanelPacker(std::optional<Int<"PanelPacker", "threads", int>> threads)
      : backend_(make_backend("cpu", checked_threads(threads))) {}

  py::array pack_rows(const std::string& name, const std::string& format, Int<"PanelPacker.pack", "cols"> given,
                      const ByteArray& data) {
    const std::int64_t cols = given;
    LLAMA2CPP_CHECK(data.ndim() == 2, "data has shape ", std::string(py::str(data.attr("shape"))),
                    ", expected two dimensions");
    Weight weight = plain_matrix(name, find_format(format), data.shape(0), cols);
    const std::int64_t bytes = row_bytes(*weight.format, cols);
    LLAMA2CPP_CHECK(data.shape(1) == bytes, "data has shape ", std::string(py::str(data.attr("shape"))), ", expected (",
                    weight.rows, ", ", bytes, ")");
    weight.planes[0].data = reinterpret_cast<const std::byte*>(data.data());
    weight.planes[0].bytes = static_cast<std::size_t>(data.nbytes());
    weight.planes[0].row_bytes = bytes;
    return pack(std::move(weight), *backend_);
  }

 private:
  std::shared_ptr<Backend> backend_;
};

}  // namespace

void register_panels(py::module_& module) {
  module.attr("PANEL_VERSION") = kPanelVersion;
  module.def(
      "panel_arithmetic",
      [](const Model& model) { return model.checkpoint().llama2c_arithmetic ? "llama2.c" : "contract"; },
      py::arg("model"));
  module.def(
      "panel_facts",
      [](const Model& model, const std::string& name) { return panel_facts(stored_weight(model, name)); },
      py::arg("model"), py::arg("name"));
  module.def("pack_weight", &pack_of_model, py::arg("model"), py::arg("name"));
  module.def("panel_tokenizer", &panel_tokenizer, py::arg("tokenizer"));
  py::class_<PanelPacker>(module, "PanelPacker")
      .def(py::init<std::optional<Int<"PanelPacker", "threads", int>>>(), py::arg("threads") = py::none())
      .def_static(
          "facts",
          [](const std::string& name, const std::string& format, Int<"PanelPacker.facts", "rows"> rows,
             Int<"PanelPacker.facts", "cols"> cols) {
            return panel_facts(plain_matrix(name, find_format(format), rows, cols));
          },
          py::arg("name"), py::arg("format"), py::arg("rows"), py::arg("cols"))
      .def("pack", &PanelPacker::pack_rows, py::arg("name"), py::arg("format"), py::arg("cols"),
           py::arg("data").noconvert());
}

}  // namespace llama2cpp::bind
