// The table of parts for Python: llama2cpp/common/parts.py makes its objects of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bind/bind.h"
#include "core/check.h"
#include "core/parts.h"
#include "io/families.h"
#include "io/generation_config.h"
#include "io/names.h"

namespace llama2cpp::bind {
namespace {

constexpr const char* kPartsDoc = R"doc(The weights of a Llama, in the order in which llama2.c's files have them.

Returns
-------
list of dict
    ``name``; ``pattern``, llama2.c's name with {} for the layer; ``scope`` ("model", "attention" or "mlp"); ``kind``
    ("table", "matrix", "gain", "bias" or "sinks"); ``rows`` and ``columns``, whose values a config has ("one" for vectors);
    ``need`` ("always", "untied", "optional", or what the config must have: "qk_norm", "norm_before", "norm_mlp",
    "norm_after", "norm_gain", "norm_bias", "norm_last_bias", "norm_mlp_bias", "gate", "gate_bias", "sinks"); ``rotary``, whether
    its order follows ``config.rope_style``; ``lens``,
    TransformerLens's name without "blocks.{i}."; ``reads``, the hook point whose activation it is multiplied with, or "".

Examples
--------
>>> from llama2cpp import _core
>>> [part["name"] for part in _core.parts() if part["kind"] == "gain"]
['attention_norm', 'ffn_norm', 'norm', 'q_norm', 'k_norm', 'attention_post_norm', 'ffn_post_norm']
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

constexpr const char* kFolderFamilyDoc = R"doc(What config.json calls the models that compute as this one does.

Parameters
----------
config : Config
    The model's.
parts : sequence of str
    The ``name`` in `parts` of each optional one that it has.
own : str
    The ``model_type`` of the folder that it is from, "" for none: some models are of that only if they come from it.

Returns
-------
dict
    ``model_type``; ``architecture``; ``rope_style``, the order of its files' rotary rows; ``activation`` and ``eps``, what
    it calls the one, and the setting of the other ("" for none); ``has_window``, whether it states one; ``layer_types``,
    whether it says which layers have it; ``asks_for_window``, whether that needs use_sliding_window; ``local_rope``,
    whether those have rotary settings of their own, and ``local_theta``, whether it has an older name for them;
    ``needs_rope``, whether rotary settings that are missing are not the usual ones;
    ``multipliers``, ``no_rope_layers``, ``partial_rotary``, ``query_scalar``, ``score_cap``, ``logits_cap``,
    ``logit_scale`` and ``says_parallel``, whether it has such settings; ``gain_plus_one``, whether 1 is added to the gains of its files;
    ``expert_size``, the setting of an expert's width, and ``says_renormalise``, whether it says so; ``biases``, by each
    setting that says whether a model has some: which parts they are; ``norm_biases``, the parts that are always there.
    Of tensors: ``fused``, which parts are one, by what its name has in place of theirs; ``stacked``, those of all experts,
    by a tensor's name without its layer's prefix; ``turned``, those names of ``stacked`` whose columns come first, with a row
    of each part in turn; ``names``, what parts are called that other families call otherwise.

Raises
------
ValueError
    Where transformers has no such model.

Examples
--------
>>> import llama2cpp
>>> from llama2cpp import _core
>>> _core.hugging_face_family(llama2cpp.load("storyteller").config, ["bq"])["architecture"]
'LlamaForCausalLM'
)doc";

constexpr const char* kGgufFamilyDoc = R"doc(What GGUF files call the models that have these optional parts.

Parameters
----------
parts : sequence of str
    The ``name`` in `parts` of each.
config : Config, optional
    The model's; None for a Llama's.

Returns
-------
dict
    ``architecture``; ``rope_style``, the order of its files' rotary rows; ``multipliers``, ``score_cap``,
    ``logits_cap``, ``logit_scale`` and ``says_parallel``, whether its metadata have such settings; ``local_theta``, rope_theta of layers with a window
    where a file does not say, 0 for that of all others, None where it never is another; ``yarn_truncates``, whether its
    readers take the ends of YaRN for whole numbers; ``fused``, ``stacked``, ``turned`` and ``names`` as in
    `hugging_face_family`.

Raises
------
ValueError
    Where llama.cpp has no such model.

Examples
--------
>>> from llama2cpp import _core
>>> family = _core.gguf_family(["bq"])
>>> family["architecture"], family["rope_style"]
('llama', 'interleaved')
)doc";

py::list part_rows(bool experts) {
  py::list rows;
  for (const PartFacts& row : kParts) {
    if (of_experts(row.part) != experts) continue;
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

Part part_named(const std::string& name) {
  const auto* const row =
      std::find_if(std::begin(kParts), std::end(kParts), [&](const PartFacts& other) { return other.name == name; });
  LLAMA2CPP_CHECK(row != std::end(kParts), "part is '", name, "', which no Llama has");
  return row->part;
}

std::vector<Part> parts_named(const std::vector<std::string>& names) {
  std::vector<Part> parts;
  for (const std::string& name : names) parts.push_back(part_named(name));
  return parts;
}

// By the stem of each tensor that holds several parts: their names.
py::dict fused_parts(const Family& family, Naming naming) {
  py::dict d;
  for (const Fused& fused : family.fused) {
    py::list parts;
    for (const Part part : fused.parts) parts.append(facts(part).name);
    d[py::str(naming == Naming::gguf ? fused.gguf : fused.hugging_face)] = parts;
  }
  return d;
}

// How its files' tensors are made of parts, beyond a tensor for each part by the table's name.
void add_tensors(const Family& family, Naming naming, py::dict& d) {
  d["fused"] = fused_parts(family, naming);
  py::dict stacked;
  py::list turned;
  for (const Stacked& tensor : family.stacked(naming)) {
    py::list parts;
    for (const Part part : tensor.parts) parts.append(facts(part).name);
    stacked[py::str(tensor.name)] = parts;
    if (tensor.turned) turned.append(tensor.name);
  }
  d["stacked"] = stacked;
  d["turned"] = turned;
  py::dict names;
  for (const PartFacts& row : kParts) {
    const std::string stem = family.stem(naming, row.part);
    if (stem != (naming == Naming::gguf ? row.gguf : row.hugging_face)) names[py::str(row.name)] = stem;
  }
  d["names"] = names;
}

// The parts by the settings that say whether a model of the config has them.
py::dict stated_biases(const Family& family, const Config& config) {
  py::dict d;
  for (const PartFacts& row : kParts) {
    const std::string_view name = family.bias_switch(row.part);
    if (row.kind != PartKind::bias || !family.computes_switch(name) || is_needed(config, row.part) == false) continue;
    const py::str key(name);
    if (!d.contains(key)) d[key] = py::list();
    d[key].cast<py::list>().append(row.name);
  }
  return d;
}

py::list norm_biases(const Family& family, const Config& config) {
  py::list parts;
  for (const PartFacts& row : kParts) {
    const bool has = family.norm_biases && is_norm_bias(row.part) && is_needed(config, row.part) != false;
    if (has) parts.append(row.name);
  }
  return parts;
}

py::dict hugging_face_family(const Config& config, const std::vector<std::string>& names, const std::string& own) {
  const Family& family = hugging_face_family_of(config, parts_named(names), own);
  py::dict d;
  add_tensors(family, Naming::hugging_face, d);
  d["activation"] = family.acts[0];
  d["eps"] = family.eps_name;
  d["local_rope"] = family.local_rope;
  d["local_theta"] = family.local_rope_theta > 0;
  d["needs_rope"] = family.needs_rope_parameters;
  d["query_scalar"] = family.query_scalar > 0;
  d["score_cap"] = family.computes_switch(kScoreCap);
  d["logits_cap"] = family.computes_switch(kLogitsCap);
  d["logit_scale"] = family.logit_scale > 0;
  d["says_parallel"] = family.computes_switch("use_parallel_residual");
  d["gain_plus_one"] = family.gain_plus_one;
  d["expert_size"] = family.experts ? family.experts->hidden_size : std::string_view();
  d["says_renormalise"] = family.experts && family.experts->says_whether;
  d["norm_biases"] = norm_biases(family, config);
  d["partial_rotary"] = family.computes_switch("partial_rotary_factor");
  d["model_type"] = family.model_type;
  d["architecture"] = family.architectures[0];
  d["rope_style"] = to_string(family.hugging_face_rope_style);
  d["has_window"] = family.windows != Windows::none && config.sliding_window > 0;
  d["layer_types"] = family.windows == Windows::some;
  d["asks_for_window"] = family.asks_for_window;
  d["multipliers"] = family.computes_switch("multipliers");
  d["no_rope_layers"] = family.computes_switch("no_rope_layers");
  d["biases"] = stated_biases(family, config);
  return d;
}

py::dict gguf_family(const std::vector<std::string>& names, const std::optional<Config>& config) {
  const Family& family = gguf_family_of(config.value_or(Config()), parts_named(names));
  py::dict d;
  d["architecture"] = family.gguf;
  add_tensors(family, Naming::gguf, d);
  d["multipliers"] = family.computes_switch("multipliers");
  d["score_cap"] = family.computes_switch(kScoreCap);
  d["logits_cap"] = family.computes_switch(kLogitsCap);
  d["logit_scale"] = family.logit_scale > 0;
  d["says_parallel"] = family.computes_switch("use_parallel_residual");
  d["yarn_truncates"] = family.gguf_yarn_truncates;
  d["local_theta"] = family.local_rope ? py::object(py::float_(family.local_rope_theta)) : py::object(py::none());
  d["rope_style"] = to_string(family.gguf_rope_style);
  return d;
}

py::tuple shape_of_part(const std::string& name, const Config& config) {
  const Part part = part_named(name);
  const MatrixShape shape = part_shape(config, part);
  if (is_vector(part)) return py::make_tuple(shape.cols);
  return py::make_tuple(shape.rows, shape.cols);
}

std::optional<std::string> rename_weight(const std::string& name, const std::string& family) {
  const auto* const wanted = std::find_if(std::begin(kNamings), std::end(kNamings),
                                          [&](Naming naming) { return to_string(naming) == family; });
  LLAMA2CPP_CHECK(wanted != std::end(kNamings), "family is '", family, "', expected llama2.c, hugging_face or gguf");
  for (const Naming naming : kNamings) {
    const auto found = find_part(naming, name);
    if (found) return weight_name(*wanted, found->part, found->layer, found->expert);
  }
  return {};
}

}  // namespace

void register_parts(py::module_& module) {
  py::list namings;
  for (const Naming naming : kNamings) namings.append(to_string(naming));
  module.attr("NAMINGS") = py::tuple(namings);
  module.def(
      "parts", [] { return part_rows(false); }, kPartsDoc);
  module.def(
      "expert_parts", [] { return part_rows(true); },
      "What layers of models with experts have in place of w1, w2 and w3, as `parts` says of the others: the router, "
      "and matrices and biases of each expert, whose number is the second {} of ``pattern``, and the {} of ``lens``.");
  module.def("part_shape", &shape_of_part, py::arg("part"), py::arg("config"), kShapeDoc);
  module.def("hugging_face_family", &hugging_face_family, py::arg("config"), py::arg("parts"), py::arg("own") = "",
             kFolderFamilyDoc);
  module.def("gguf_family", &gguf_family, py::arg("parts"), py::arg("config") = py::none(), kGgufFamilyDoc);
  module.def("rename_weight", &rename_weight, py::arg("name"), py::arg("family"), kRenameDoc);
  module.def(
      "gguf_sampling_keys",
      [] {
        py::dict keys;
        for (const SamplingKey& key : sampling_keys()) keys[py::str(std::string(key.name))] = std::string(key.key);
        return keys;
      },
      "What a GGUF file calls settings of sampling behind ``general.sampling.``, by transformers' names.");
}

}  // namespace llama2cpp::bind
