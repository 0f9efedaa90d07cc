// Weights packed into panels for Python, which writes them to files: see src/llama2cpp/export/panel_file.py.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bind/bind.h"
#include "bind/numpy.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "format/panel_formats.h"
#include "model/model.h"

namespace llama2cpp::bind {
namespace {

using ByteArray = py::array_t<std::uint8_t, py::array::c_style>;

// A matrix of the model, or of its shape in a format whose rows lie in one plane.
Weight weight_for(const Model& model, const std::string& name, const std::optional<std::string>& format) {
  const auto found = model.checkpoint().weights.find(name);
  if (found == model.checkpoint().weights.end()) throw py::key_error(name);
  if (!format) return found->second;
  Weight weight;
  weight.name = name;
  weight.format = &find_format(*format);
  weight.rows = found->second.rows;
  weight.cols = found->second.cols;
  weight.group = weight.format->group;
  LLAMA2CPP_CHECK(weight.group > 0 && weight.cols % weight.group == 0, "'", name, "' is ", shape_text(weight),
                  ", whose rows cannot be ", *format);
  return weight;
}

// The same in panels, without a byte of them.
Weight facts_of(Weight weight) {
  if (weight.format->in_panels_of != nullptr) return weight;
  const Format* const format = in_panels(*weight.format, stored_form(weight));
  LLAMA2CPP_CHECK(format != nullptr, "'", weight.name, "' is ", weight.format->name,
                  ", which a file of panels cannot hold");
  weight.format = format;
  if (format->form != PanelForm::blocks) weight.order = {};
  return weight;
}

py::dict panel_facts(const Model& model, const std::string& name, const std::optional<std::string>& format) {
  const Weight weight = facts_of(weight_for(model, name, format));
  py::dict facts;
  facts["format"] = std::string(weight.format->name);
  facts["rows"] = weight.rows;
  facts["cols"] = weight.cols;
  facts["group"] = weight.group;
  facts["bytes"] = stored_bytes(weight);
  facts["order"] = py::none();
  if (weight.order) {
    const auto* const order = reinterpret_cast<const std::int32_t*>(weight.order.data());
    facts["order"] = py::array_t<std::int32_t>(std::vector<py::ssize_t>{weight.cols}, order);
  }
  return facts;
}

// uint8 [bytes], a read-only view of memory of its own, or of the file that holds panels.
py::array pack_weight(const Model& model, const std::string& name, const std::optional<std::string>& format,
                      const std::optional<ByteArray>& data) {
  LLAMA2CPP_CHECK(format.has_value() == data.has_value(), "a format comes with the rows in it");
  Weight weight = weight_for(model, name, format);
  const Weight facts = facts_of(weight);
  if (data) {
    const std::int64_t row_bytes = weight.cols / weight.group * weight.format->group_bytes;
    LLAMA2CPP_CHECK(data->ndim() == 2 && data->shape(0) == weight.rows && data->shape(1) == row_bytes,
                    "data has shape ", std::string(py::str(data->attr("shape"))), ", expected (", weight.rows, ", ",
                    row_bytes, ")");
    weight.planes[0].data = reinterpret_cast<const std::byte*>(data->data());
    weight.planes[0].bytes = static_cast<std::size_t>(data->nbytes());
    weight.planes[0].row_bytes = row_bytes;
  }
  weight.int8_input = facts.format->form == PanelForm::blocks || facts.format->form == PanelForm::int8_group;
  {
    const ReleasedGil released;
    const Backend::Lease lease(model.backend());
    model.backend().pack(weight);
  }
  ByteArray view(std::vector<py::ssize_t>{static_cast<py::ssize_t>(weight.panels.size())},
                 reinterpret_cast<const std::uint8_t*>(weight.panels.data()), keeper(weight.panels));
  view.attr("setflags")(py::arg("write") = false);
  return view;
}

}  // namespace

void register_panels(py::module_& module) {
  module.attr("PANEL_VERSION") = kPanelVersion;
  module.def(
      "panel_arithmetic", [](const Model& model) { return model.checkpoint().is_runq_s ? "llama2.c" : "contract"; },
      py::arg("model"));
  module.def("panel_facts", &panel_facts, py::arg("model"), py::arg("name"), py::arg("format") = py::none());
  module.def("pack_weight", &pack_weight, py::arg("model"), py::arg("name"), py::arg("format") = py::none(),
             py::arg("data").noconvert() = py::none());
}

}  // namespace llama2cpp::bind
