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
#include "format/int8_group.h"
#include "format/llm_int8.h"
#include "format/panel_formats.h"
#include "format/weight_rows.h"
#include "model/model.h"

namespace llama2cpp::bind {
namespace {

using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

const Weight& stored_weight(const Model& model, const std::string& name) {
  const auto found = model.checkpoint().weights.find(name);
  if (found == model.checkpoint().weights.end()) throw py::key_error(name);
  return found->second;
}

// A matrix whose rows lie in one plane, which is not there yet.
Weight new_weight(const std::string& name, const std::string& format, std::int64_t rows, std::int64_t cols) {
  Weight weight;
  weight.name = name;
  weight.format = &find_format(format);
  weight.rows = rows;
  weight.cols = cols;
  weight.group = weight.format->group;
  LLAMA2CPP_CHECK(rows >= 1 && cols >= 1, "'", name, "' is ", shape_text(weight), ", expected at least one number");
  LLAMA2CPP_CHECK(weight.group > 0 && cols % weight.group == 0, "'", name, "' is ", shape_text(weight),
                  ", whose rows cannot be ", format);
  return weight;
}

// The same in panels, without a byte of them.
Weight facts_of(Weight weight) {
  if (weight.format->in_panels_of != nullptr) return weight;
  const Format* const format = in_panels(*weight.format, stored_form(weight));
  LLAMA2CPP_CHECK(format != nullptr, "'", weight.name, "' is ", weight.format->name,
                  ", which a file of panels cannot hold");
  LLAMA2CPP_CHECK(format->form != PanelForm::int8_group || weight.group <= kMostInt8Group, "'", weight.name,
                  "' is in groups of ", weight.group, ", expected at most ", kMostInt8Group);
  // GPTQ's that cannot be blocks are floats, and in groups of one a reader sees that.
  if (format->form == PanelForm::f32 && weight.format->group == 0) weight.group = 1;
  weight.format = format;
  if (format->form != PanelForm::blocks) weight.order = {};
  return weight;
}

py::object array_of(std::span<const std::int32_t> numbers) {
  if (numbers.empty()) return py::none();
  return py::array_t<std::int32_t>(static_cast<py::ssize_t>(numbers.size()), numbers.data());
}

// What a file says of a matrix, and the small arrays beside it.
py::dict panel_facts(const Weight& stored) {
  const Weight weight = facts_of(stored);
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
  const PanelForm form = facts_of(weight).format->form;
  weight.int8_input = form == PanelForm::blocks || form == PanelForm::int8_group || form == PanelForm::llm_int8;
  {
    const ReleasedGil released;
    const Poll poll(backend);
    const Backend::Lease lease(backend, poll);
    backend.pack(weight);
    std::vector<Buffer> files;
    add_files(weight, files);
    FileReads(files).check();
  }
  warn_of(backend);
  ByteArray view(std::vector<py::ssize_t>{static_cast<py::ssize_t>(weight.panels.size())},
                 reinterpret_cast<const std::uint8_t*>(weight.panels.data()), keeper(weight.panels));
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

// Packs rows that have been encoded, of whatever they are.
class PanelPacker {
 public:
  explicit PanelPacker(std::optional<Int<"PanelPacker", "threads", int>> threads)
      : backend_(make_backend("cpu", threads ? threads->value : 0)) {}

  py::array pack_rows(const std::string& name, const std::string& format, Int<"PanelPacker.pack", "cols"> given,
                      const ByteArray& data) {
    const std::int64_t cols = given;
    LLAMA2CPP_CHECK(data.ndim() == 2, "data has shape ", std::string(py::str(data.attr("shape"))),
                    ", expected two dimensions");
    Weight weight = new_weight(name, format, data.shape(0), cols);
    const std::int64_t row_bytes = cols / weight.group * weight.format->group_bytes;
    LLAMA2CPP_CHECK(data.shape(1) == row_bytes, "data has shape ", std::string(py::str(data.attr("shape"))),
                    ", expected (", weight.rows, ", ", row_bytes, ")");
    weight.planes[0].data = reinterpret_cast<const std::byte*>(data.data());
    weight.planes[0].bytes = static_cast<std::size_t>(data.nbytes());
    weight.planes[0].row_bytes = row_bytes;
    return pack(std::move(weight), *backend_);
  }

 private:
  std::shared_ptr<Backend> backend_;
};

}  // namespace

void register_panels(py::module_& module) {
  module.attr("PANEL_VERSION") = kPanelVersion;
  module.def(
      "panel_arithmetic", [](const Model& model) { return model.checkpoint().is_runq_s ? "llama2.c" : "contract"; },
      py::arg("model"));
  module.def(
      "panel_facts",
      [](const Model& model, const std::string& name) { return panel_facts(stored_weight(model, name)); },
      py::arg("model"), py::arg("name"));
  module.def(
      "pack_weight",
      [](const Model& model, const std::string& name) { return pack(stored_weight(model, name), model.backend()); },
      py::arg("model"), py::arg("name"));
  py::class_<PanelPacker>(module, "PanelPacker")
      .def(py::init<std::optional<Int<"PanelPacker", "threads", int>>>(), py::arg("threads") = py::none())
      .def_static(
          "facts",
          [](const std::string& name, const std::string& format, Int<"PanelPacker.facts", "rows"> rows,
             Int<"PanelPacker.facts", "cols"> cols) { return panel_facts(new_weight(name, format, rows, cols)); },
          py::arg("name"), py::arg("format"), py::arg("rows"), py::arg("cols"))
      .def("pack", &PanelPacker::pack_rows, py::arg("name"), py::arg("format"), py::arg("cols"),
           py::arg("data").noconvert());
}

}  // namespace llama2cpp::bind
