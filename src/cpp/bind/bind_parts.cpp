// The table of parts for Python: llama2cpp/common/parts.py makes its objects of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "bind/bind.h"
#include "core/check.h"
#include "core/parts.h"
#include "io/names.h"

namespace llama2cpp::bind {
namespace {

constexpr const char* kPartsDoc = R"doc(The weights of a Llama, in the order in which llama2.c's files have them.

Returns
-------
list of dict
    ``name``; ``pattern``, llama2.c's name with {} for the layer; ``scope`` ("model", "attention" or "mlp"); ``kind``
    ("table", "matrix", "gain" or "bias"); ``rows`` and ``columns``, whose values a config has ("one" for vectors);
    ``need`` ("always", "untied" or "optional"); ``rotary``, whether its order follows ``config.rope_style``; ``lens``,
    TransformerLens's name without "blocks.{i}."; ``reads``, the hook point whose activation it is multiplied with, or "".

Examples
--------
>>> from llama2cpp import _core
>>> [part["name"] for part in _core.parts() if part["kind"] == "gain"]
['attention_norm', 'ffn_norm', 'norm']
)doc";

constexpr const char* kShapeDoc = R"doc(The shape that a config gives a part.

Parameters
----------
part : str
    Its ``name`` in `parts`.
config : Config
    The sizes.

Returns
-------
tuple of int
    (rows, columns), or (length,) of a vector.

Raises
------
ValueError
    For a part that no Llama has.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import _core
>>> _core.part_shape("wk", llama2cpp.load("storyteller").config)
(64, 192)
)doc";

constexpr const char* kRenameDoc = R"doc(What another family of files calls a weight.

Parameters
----------
name : str
    A name of llama2.c's ("layers.0.attention.wq.weight"), Hugging Face's or GGUF's.
family : str
    Whose name is wanted: "llama2.c", "hugging_face" or "gguf".

Returns
-------
str or None
    None for a name that no Llama has.

Raises
------
ValueError
    For an unknown family.

Examples
--------
>>> from llama2cpp import _core
>>> _core.rename_weight("model.layers.3.self_attn.q_proj.weight", "gguf")
'blk.3.attn_q.weight'
)doc";

py::list part_rows() {
  py::list rows;
  for (const PartFacts& row : kParts) {
    const PartWords& said = words(row.part);
    py::dict d;
    d["name"] = row.name;
    d["pattern"] = weight_pattern(Naming::meta, row.part);
    d["scope"] = said.scope;
    d["kind"] = said.kind;
    d["rows"] = said.rows;
    d["columns"] = said.cols;
    d["need"] = said.need;
    d["rotary"] = row.rotary;
    d["lens"] = row.lens;
    d["reads"] = row.reads;
    rows.append(std::move(d));
  }
  return rows;
}

py::tuple shape_of_part(const std::string& name, const Config& config) {
  const auto* const row =
      std::find_if(std::begin(kParts), std::end(kParts), [&](const PartFacts& other) { return other.name == name; });
  LLAMA2CPP_CHECK(row != std::end(kParts), "part is '", name, "', which no Llama has");
  const MatrixShape shape = part_shape(config, row->part);
  if (is_vector(row->part)) return py::make_tuple(shape.cols);
  return py::make_tuple(shape.rows, shape.cols);
}

std::optional<std::string> rename_weight(const std::string& name, const std::string& family) {
  const auto* const wanted = std::find_if(std::begin(kNamings), std::end(kNamings),
                                          [&](Naming naming) { return to_string(naming) == family; });
  LLAMA2CPP_CHECK(wanted != std::end(kNamings), "family is '", family, "', expected llama2.c, hugging_face or gguf");
  for (const Naming naming : kNamings) {
    const auto found = find_part(naming, name);
    if (found) return weight_name(*wanted, found->part, found->layer);
  }
  return {};
}

}  // namespace

void register_parts(py::module_& module) {
  py::list namings;
  for (const Naming naming : kNamings) namings.append(to_string(naming));
  module.attr("NAMINGS") = py::tuple(namings);
  module.def("parts", &part_rows, kPartsDoc);
  module.def("part_shape", &shape_of_part, py::arg("part"), py::arg("config"), kShapeDoc);
  module.def("rename_weight", &rename_weight, py::arg("name"), py::arg("family"), kRenameDoc);
}

}  // namespace llama2cpp::bind
