// LoRA adapters for Python; see llama2cpp/adapters.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/file_path.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "format/weight_rows.h"
#include "io/adapter_file.h"
#include "model/adapter.h"

namespace llama2cpp::bind {
namespace {

// The numbers of an adapter's file, float32, by its names.
py::dict read_adapter_file(const FilePath& path) {
  AdapterFile file;
  {
    const ReleasedGil released;
    file = open_adapter_file(path.utf8);
  }
  py::dict tensors;
  for (const auto& [name, weight] : file.tensors) {
    auto array = new_array<float>({static_cast<py::ssize_t>(weight.rows), static_cast<py::ssize_t>(weight.cols)},
                                  "a matrix of an adapter");
    float* const out = array.mutable_data();
    {
      const ReleasedGil released;
      decode(weight, out);
    }
    tensors[py::str(name)] = array;
  }
  py::dict found;
  found["gguf"] = file.gguf;
  found["architecture"] = file.architecture;
  found["alpha"] = file.alpha;
  found["tensors"] = tensors;
  return found;
}

// For each module the parts that it is: (part, its name, layer, first row, rows, columns, whether rows come in another rotary
// order than the model's).
py::list adapter_targets_of(const Model& model, Flag<"adapter_targets", "gguf"> gguf, const std::string& architecture,
                            const std::vector<std::string>& modules) {
  const Config& config = model.config();
  const AdapterNames names = adapter_names(model.checkpoint(), gguf, architecture);
  py::list all;
  for (const std::string& module : modules) {
    py::list targets;
    for (const AdapterTarget& target : adapter_targets(config, names, module)) {
      const std::string reason = why_no_low_rank(config, target.part);
      if (!reason.empty()) throw FormatError(cat("'", module, "' ", reason));
      const PartFacts& row = facts(target.part);
      const bool turned = row.rotary && names.rope_style != config.rope_style;
      targets.append(py::make_tuple(static_cast<int>(target.part), std::string(row.name), target.layer, target.first,
                                    target.count, part_shape(config, target.part).cols, turned));
    }
    all.append(targets);
  }
  return all;
}

using FloatMatrix = py::array_t<float, py::array::c_style>;
using PartTuple = std::tuple<Int<"Adapter", "part", int>, Int<"Adapter", "layer">, float, FloatMatrix, FloatMatrix>;

std::shared_ptr<Adapter> make_adapter(std::shared_ptr<Model> model, const std::vector<PartTuple>& given) {
  std::vector<LowRankPart> parts;
  for (const auto& [part, layer, scale, a, b] : given) {
    LLAMA2CPP_CHECK(part >= 0 && part < static_cast<int>(std::size(kParts)), "part is ", int{part});
    LLAMA2CPP_CHECK(a.ndim() == 2 && b.ndim() == 2, "the factors of an adapter are matrices");
    parts.push_back({static_cast<Part>(int{part}), layer, a.shape(0), scale,
                     std::span(a.data(), static_cast<std::size_t>(a.size())),
                     std::span(b.data(), static_cast<std::size_t>(b.size()))});
  }
  const ReleasedGil released;
  return std::make_shared<Adapter>(std::move(model), parts, poll_signals);
}

// (A [rank, cols], B [rows, rank], scale) of a part by its name; None where the adapter leaves it alone.
py::object factors_of(const Adapter& adapter, const std::string& name, Int<"Adapter.factors", "layer"> layer) {
  LLAMA2CPP_CHECK(layer >= 0 && layer < adapter.model().config().n_layers, "layer is ", std::int64_t{layer});
  const auto row =
      std::find_if(std::begin(kParts), std::end(kParts), [&](const PartFacts& f) { return f.name == name; });
  const LowRank* const found = row == std::end(kParts) ? nullptr : adapter.find(row->part, layer);
  if (found == nullptr) return py::none();
  const auto array = [](const Weight& weight) {
    return float_array(weight.planes[0].owner, 0,
                       {static_cast<py::ssize_t>(weight.rows), static_cast<py::ssize_t>(weight.cols)})
        .attr("copy")();
  };
  return py::make_tuple(array(found->a), array(found->b), found->scale);
}

}  // namespace

void register_adapter(py::module_& module) {
  using py::arg;
  module.def("read_adapter_file", &read_adapter_file, arg("path"));
  module.def("adapter_targets", &adapter_targets_of, arg("model"), arg("gguf"), arg("architecture"), arg("modules"));
  py::class_<Adapter, std::shared_ptr<Adapter>>(module, "Adapter", "Factors beside weights; see llama2cpp.Adapter.")
      .def(py::init(&make_adapter), arg("model"), arg("parts"))
      .def_property_readonly("model", [](const Adapter& a) { return std::const_pointer_cast<Model>(a.shared_model()); })
      .def_property_readonly("rank", &Adapter::largest_rank)
      .def_property_readonly("bytes", &Adapter::bytes)
      .def_property_readonly("fingerprint", &Adapter::fingerprint)
      .def(
          "fits", [](const Adapter& a, const Model& model) { return a.fits(model); }, arg("model"))
      .def("factors", &factors_of, arg("part"), arg("layer"));
}

}  // namespace llama2cpp::bind
