// Config for Python: everything goes through the list of its fields in core/config.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "core/check.h"
#include "core/config.h"
#include "core/quote.h"

namespace llama2cpp::bind {
namespace {

constexpr const char* kConfigDoc = R"(The sizes and constants of a Llama, read-only.

Parameters
----------
dim : int
    Width of the residual stream.
hidden_dim : int
    Width of the gated MLP.
n_layers, n_heads : int
    Layers, and query heads in each.
vocab_size : int
    Number of token ids.
seq_len : int
    The context that the model was trained for, in tokens.
n_kv_heads : int, optional
    Key and value heads; divides n_heads. None means n_heads.
head_dim : int, optional
    Width of one head, even. None means dim / n_heads.
norm_eps : float
    Added to the mean square in RMSNorm.
rope_theta : float
    Base of the rotary frequencies.
rope_scaling : dict, optional
    How the frequencies are changed for long contexts: ``{"type": "linear", "factor": f}`` divides them by f,
    ``{"type": "llama3", "factor": f, "low_freq_factor": a, "high_freq_factor": b, "original_context": n}`` does what
    Llama 3.1 does, and ``{"type": "yarn", "factor": f, "original_context": n, "attention_factor": a, "beta_fast": b,
    "beta_slow": c, "truncate": t}`` what YaRN does (Peng et al. 2023), with cos and sin times a. ``{"type": "dynamic",
    "factor": f, "original_context": n}`` changes nothing up to n positions, and ``{"type": "longrope", "factor": f,
    "original_context": n, "attention_factor": a}`` multiplies cos and sin by a; a context has at most n with the former, and with the latter
    where there are no rope_long_factors.
rope_factors : sequence of float
    [head_dim / 2], in addition: each frequency is divided by its own factor. None if empty. GGUF files have Llama 3's
    scaling so.
sliding_window : int, optional
    A position attends to itself and to the sliding_window - 1 before it, as in Mistral 7B; None for all before it.
rope_style : str
    Order of the rows of wq and wk: "interleaved" (llama2.c, GGUF) or "half_split" (Hugging Face).
tied : bool
    Whether the output matrix is the embedding table.
rotary_dim : int, optional
    How many numbers of each head are turned by their position, the first ones; None for all. Fewer than all with
    rope_style "half_split" only.
rope_long_factors : sequence of float
    [rotary_dim / 2], with rope_scaling of type "longrope": what rope_factors are in sessions whose context is beyond the
    original one, from their first token on. None if empty: then no context is longer.
qk_norm : str
    Whether queries and keys are RMS-normalized before rotary embedding: "none", "head" (each head by itself, as in Qwen3)
    or "full" (all heads of a token together, as in OLMo 2); or each head after it: "head_after_rope".
full_layers : sequence of int
    Layers that see all positions before them although there is a sliding_window. None if empty.
no_rope_layers : sequence of int
    Layers whose queries and keys are not turned by their position, as in SmolLM3. None if empty.
embedding_multiplier, residual_multiplier : float
    What embeddings are multiplied by, and what attention and MLP add to the residual stream, as in Granite.
attention_multiplier : float
    What attention scores are multiplied by; 0 means 1 / sqrt(head_dim).
logits_scaling : float
    What logits are divided by.
n_experts : int, optional
    How many MLPs each layer has, of which a router chooses some for each token, as in Mixtral; None for one without a
    router. hidden_dim is the width of each.
n_experts_used : int, optional
    How many experts each token goes to.
router_order : str
    How a router's scores become the experts' weights: "softmax_topk" (softmax over all, and then the largest) or
    "topk_softmax" (softmax over the largest).
router_renormalise : bool
    Whether the weights of a token's experts are divided by their sum, after softmax_topk.
norm : str
    What norms compute: "rms" (RMSNorm), "layer" (LayerNorm, with biases or without) or "layer_plain" (LayerNorm without
    gains).
parallel : bool
    Whether the MLP reads what attention reads, and both are added afterwards.
norm_places : str
    Which norms attention and MLP have: "before" (of what they read), "after" (of what they add to the residual stream, as
    in OLMo 2) or "both" (as in Gemma 2).
activation : str
    Of the MLP: "silu", "gelu_tanh" (GELU as tanh approximates it), "relu_squared", or "clamped_swiglu" (of both products, as
    in gpt-oss).
gated : bool
    Whether the MLP multiplies what it activates with another product.
local_rope_theta : float
    rope_theta of layers with a sliding window, which then have neither rope_scaling nor rope_factors; 0: they are as all
    others.
score_cap, logits_cap : float
    Attention scores, or logits, become cap * tanh(x / cap); 0: they do not.

Raises
------
ValueError
    For sizes that no Llama can have, with the size's name and value.
TypeError
    For a name that is none of these, a value of another type, and a size that is missing.

Examples
--------
>>> import llama2cpp
>>> config = llama2cpp.Config(
...     dim=64, hidden_dim=172, n_layers=5, n_heads=8, n_kv_heads=4, vocab_size=512, seq_len=512, tied=True
... )
>>> config.head_dim
8
)";

template <class Member>
constexpr bool kIsInteger = std::is_same_v<Member, std::int64_t Config::*>;

// --- to Python

py::object to_python(const Field& field, std::int64_t value) {
  return field.least == 0 && value == 0 ? py::object(py::none()) : py::int_(value);
}
py::object to_python(const Field& /*field*/, float value) { return py::float_(value); }
py::object to_python(const Field& /*field*/, bool value) { return py::bool_(value); }
template <class Value>
  requires std::is_enum_v<Value>
py::object to_python(const Field& /*field*/, Value value) {
  return py::str(to_string(value));
}
py::object to_python(const Field& /*field*/, const Layers& layers) { return py::tuple(py::cast(layers)); }
py::object to_python(const Field& /*field*/, const std::vector<float>& values) { return py::tuple(py::cast(values)); }
py::object to_python(const Field& /*field*/, const RopeScaling& scaling) {
  if (scaling.kind == RopeScaling::Kind::none) return py::none();
  py::dict d;
  RopeScaling::fields([&](const Field& field, auto member) {
    if (scaling.has(field)) d[py::str(field.name)] = to_python(field, scaling.*member);
  });
  return d;
}

py::dict config_dict(const Config& config) {
  py::dict d;
  Config::fields([&](const Field& field, auto member) { d[py::str(field.name)] = to_python(field, config.*member); });
  return d;
}

// --- and from it. None has been looked at before.

[[noreturn]] void throw_type(const Field& field, py::handle given, const char* expected) {
  throw py::type_error(cat("Config: ", field.name, " is ", shown(given), ", expected ", expected));
}

void from_python(const Field& field, py::handle given, std::int64_t& value) {
  value = to_integer<std::int64_t>(given, "Config", std::string(field.name).c_str());
  LLAMA2CPP_CHECK(field.least != 0 || value >= 1, field.name, " is ", value, ", expected 1 or more, or None");
}

void from_python(const Field& field, py::handle given, float& value) {
  const double number = PyFloat_AsDouble(given.ptr());
  if (number == -1.0 && PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw_type(field, given, "a number");
  }
  value = static_cast<float>(number);
}

void from_python(const Field& field, py::handle given, bool& value) {
  const int truth = is_bool(given) ? PyObject_IsTrue(given.ptr()) : -1;
  if (truth < 0) {
    PyErr_Clear();
    throw_type(field, given, "True or False");
  }
  value = truth != 0;
}

bool is_sequence(py::handle given) {
  return py::isinstance<py::iterable>(given) && !py::isinstance<py::str>(given) && !py::isinstance<py::bytes>(given);
}

void from_python(const Field& field, py::handle given, std::vector<float>& values) {
  if (!is_sequence(given)) {
    throw_type(field, given, "a sequence of numbers, or None");
  }
  for (const py::handle item : py::reinterpret_borrow<py::iterable>(given)) {
    from_python(field, item, values.emplace_back());
  }
}

void from_python(const Field& field, py::handle given, Layers& layers) {
  if (!is_sequence(given)) {
    throw_type(field, given, "a sequence of layers, or None");
  }
  for (const py::handle item : py::reinterpret_borrow<py::iterable>(given)) {
    layers.push_back(to_integer<std::int64_t>(item, "Config", cat("one of ", field.name).c_str()));
  }
}

template <class Value>
std::string listed() {
  std::string names;
  for (const Value value : kValues<Value>) names += cat(names.empty() ? "" : ", ", to_string(value));
  return names;
}

template <class Value>
  requires std::is_enum_v<Value>
void from_python(const Field& field, py::handle given, Value& value) {
  constexpr const char* of = std::is_same_v<Value, RopeScaling::Kind> ? "rope_scaling's " : "";
  constexpr auto kAll = kValues<Value>;
  if (!py::isinstance<py::str>(given)) throw_type(field, given, "a str");
  const std::string name = py::str(given);
  const auto* const found =
      std::find_if(kAll.begin(), kAll.end(), [&](Value known) { return to_string(known) == name; });
  LLAMA2CPP_CHECK(found != kAll.end(), of, field.name, " is '", name, "', expected one of: ", listed<Value>());
  value = *found;
}

// {"type": "llama3", "factor": 8.0, ...}
void from_python(const Field& field, py::handle given, RopeScaling& scaling) {
  if (!py::isinstance<py::dict>(given) && !py::hasattr(given, "keys")) throw_type(field, given, "a dict, or None");
  const py::dict d(py::reinterpret_borrow<py::object>(given));
  std::size_t known = 0;
  RopeScaling::fields([&](const Field& inner, auto member) {  // the type is the first
    if (!scaling.has(inner)) return;
    const py::str name(inner.name);
    const std::string why = scaling.kind == RopeScaling::Kind::none
                                ? cat("expected one of: ", listed<RopeScaling::Kind>())
                                : cat("which type '", to_string(scaling.kind), "' needs");
    LLAMA2CPP_CHECK(d.contains(name), field.name, " has no '", inner.name, "', ", why);
    from_python(inner, d[name], scaling.*member);
    ++known;
  });
  if (known == d.size()) return;
  for (const auto& [key, value] : d) {
    const std::string name = py::str(key);
    bool is_known = false;
    RopeScaling::fields([&](const Field& inner, auto) { is_known |= scaling.has(inner) && inner.name == name; });
    LLAMA2CPP_CHECK(is_known, field.name, " has '", name, "', which type '", to_string(scaling.kind),
                    "' does not know");
  }
}

template <class Member>
bool is_needed(const Field& field) {
  return kIsInteger<Member> && field.least > 0 && field.derived == nullptr;
}

// Whether None says that it is not given.
template <class Member>
bool may_be_none(const Field& field) {
  constexpr bool kIsStructure = std::is_same_v<Member, RopeScaling Config::*> ||
                                std::is_same_v<Member, std::vector<float> Config::*> ||
                                std::is_same_v<Member, Layers Config::*>;
  return kIsStructure || (kIsInteger<Member> && !is_needed<Member>(field));
}

// A field is as given, or derived from those before it, or Config's own default.
Config make_config(const py::kwargs& given) {
  Config config;
  std::string missing;
  std::size_t known = 0;
  Config::fields([&](const Field& field, auto member) {
    using Member = decltype(member);
    const py::str name(field.name);
    const bool is_given = given.contains(name);
    known += is_given ? 1 : 0;
    if (is_given && !(may_be_none<Member>(field) && given[name].is_none())) {
      from_python(field, given[name], config.*member);
    } else if (is_needed<Member>(field)) {
      missing += cat(missing.empty() ? "" : ", ", field.name);
    } else if constexpr (kIsInteger<Member>) {
      if (field.derived != nullptr && missing.empty()) config.*member = field.derived(config);
    }
  });
  if (known != given.size()) {
    const py::object unknown = py::module_::import("llama2cpp.common.arguments").attr("unknown_argument");
    const py::dict fields = config_dict(config);
    for (const auto& [name, value] : given) {
      if (!fields.contains(name)) throw py::type_error(py::str(unknown(name, fields, "Config")));
    }
  }
  if (!missing.empty()) throw py::type_error(cat("Config() needs ", missing));
  config.validate();
  return config;
}

// --- how it is called, for help() and the test of the stub

std::string default_text(std::int64_t /*value*/) { return "int | None = None"; }
std::string default_text(float value) {
  const std::string text = cat(value);
  const bool whole = text.find_first_of(".e") == std::string::npos;  // Python writes 10000.0
  return cat("float = ", text, whole ? ".0" : "");
}
std::string default_text(bool value) { return cat("bool = ", value ? "True" : "False"); }
template <class Value>
  requires std::is_enum_v<Value>
std::string default_text(Value value) {
  return cat("str = '", to_string(value), "'");
}
std::string default_text(const Layers& /*value*/) { return "collections.abc.Sequence | None = ()"; }
std::string default_text(const RopeScaling& /*value*/) { return "collections.abc.Mapping | None = None"; }
std::string default_text(const std::vector<float>& /*value*/) { return "collections.abc.Sequence | None = ()"; }

std::string signature() {
  std::string needed;
  std::string others;
  const Config unset;
  Config::fields([&](const Field& field, auto member) {
    if (is_needed<decltype(member)>(field)) {
      needed += cat(", ", field.name, ": int");
    } else {
      others += cat(", ", field.name, ": ", default_text(unset.*member));
    }
  });
  return cat("__init__(self, *", needed, others, ") -> None");
}

py::object item_of(const Config& config, const std::string& name) {
  const py::dict fields = config_dict(config);
  if (fields.contains(name.c_str())) return fields[name.c_str()];
  const py::object close = py::module_::import("llama2cpp.common.arguments").attr("close_names");
  throw py::key_error(cat("a Config has no '", name, "'", std::string(py::str(close(name, fields)))));
}

std::string repr_of(const Config& config) {
  std::string text;
  for (const auto& [name, value] : config_dict(config)) {
    text += cat(text.empty() ? "" : ", ", std::string(py::str(name)), "=", std::string(py::repr(value)));
  }
  return "Config(" + text + ")";
}

}  // namespace

void register_config(py::module_& module) {
  using py::arg;
  py::class_<Config> config(module, "Config", kConfigDoc);
  {
    py::options options;
    options.disable_function_signatures();  // pybind11's says **kwargs
    config.def(py::init(&make_config), signature().c_str());
  }
  Config::fields([&](const Field& field, auto member) {
    config.def_property_readonly(
        std::string(field.name).c_str(), [field, member](const Config& c) { return to_python(field, c.*member); },
        std::string(field.doc).c_str());
  });
  config
      .def("to_dict", &config_dict, R"(All fields by name, as Config takes them.

Returns
-------
dict

Examples
--------
>>> import llama2cpp
>>> config = llama2cpp.Config(dim=64, hidden_dim=172, n_layers=5, n_heads=8, vocab_size=512, seq_len=512)
>>> llama2cpp.Config(**config.to_dict()) == config
True
)")
      .def("__getitem__", &item_of, arg("name"))
      .def("_ipython_key_completions_", [](const Config& c) { return py::list(config_dict(c)); })
      .def("_repr_html_",
           [](const Config& c) { return py::module_::import("llama2cpp.inside.html_views").attr("config_html")(c); })
      .def("__repr__", &repr_of)
      .def(
          "__eq__",
          [](const Config& a, const py::object& b) {
            return py::isinstance<Config>(b) && config_dict(a).equal(config_dict(b.cast<const Config&>()));
          },
          arg("other"))
      .def(py::pickle([](const Config& c) { return config_dict(c); },
                      [](const py::dict& d) { return py::type::of<Config>()(**d).cast<Config>(); }));
}

}  // namespace llama2cpp::bind
