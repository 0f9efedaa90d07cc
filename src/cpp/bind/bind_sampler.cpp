// Sampler for Python.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/mask.h"
#include "bind/numpy.h"
#include "bind/object_lock.h"
#include "core/check.h"
#include "sample/sampler.h"

namespace llama2cpp::bind {
namespace {

constexpr const char* kSamplerDoc = R"doc(Draws token ids from logits.

Parameters
----------
temperature : float, default 1.0
    Logits are divided by it: above 1 evens the odds out, below 1 favours the likely. At 0 the largest logit wins, and
    no random number is drawn.
top_p : float, default 0.9
    Keep only the most probable ids, as many as it takes to exceed this share of the probability. Off where 0 or less,
    or 1 or more.
top_k : int, default 0
    Keep only so many of the most probable ids. 0 is off.
min_p : float, default 0.0
    Keep only ids with at least this fraction of the largest probability. 0 is off.
seed : int, optional
    From 0 to 2**64 - 1; equal seeds give equal draws. Without one the system chooses, and the property tells it.
repetition_penalty : float, default 1.0
    Before all else the logits of ids in the history are made smaller: positive ones are divided by it, others
    multiplied, once per id. 1 is off.
presence_penalty, frequency_penalty : float, default 0.0
    Taken off the logits of ids in the history behind the prompt: the first once, the second as often as the id is there.
logit_bias : dict of int to float, optional
    Added to the logits of these ids; -inf forbids one.

Raises
------
ValueError
    A parameter is NaN, infinite or out of its range; the message says what was received.

Notes
-----
The order is penalties, bias, mask, temperature, softmax, top-k, top-p, min-p; ties go to the lower id. With top-k, min-p
and what changes logits off, the draws are those of llama2.c with the same seed. All arithmetic is float32.

A sampler holds one generator and is no model's: it works on any array. It can be copied and pickled, the generator's
position included. Threads that share one take turns, in no particular order.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import Sampler
>>> logits = np.array([1.0, 3.0, 2.0, -np.inf], dtype=np.float32)
>>> sampler = Sampler(temperature=0.8, top_p=0.95, seed=1)
>>> [sampler.sample(logits) for _ in range(8)]
[1, 1, 1, 1, 1, 2, 2, 1]
>>> Sampler(temperature=0).sample(logits)
1
)doc";

constexpr const char* kSampleDoc = R"doc(Draw one id.

Parameters
----------
logits : numpy.ndarray
    float32 [vocab_size], or a type that becomes float32 without loss (float16), or a list of numbers. Not changed.
    -inf forbids an id.
history : sequence of int, optional
    The ids that penalties apply to, usually the tokens so far.
prompt_tokens : int, default 0
    How many of them are the prompt's, which presence and frequency penalties do not count.
mask : numpy.ndarray, optional
    Which ids may be drawn: bool [vocab_size], or those bits packed, uint32 [ceil(vocab_size / 32)], bit id % 32 of number
    id // 32.

Returns
-------
int

Raises
------
ValueError
    The logits are of another type or shape, empty, NaN or +inf at some index; every id is forbidden; the mask is of
    another type or shape; or an id of the history or of the bias is not in the vocabulary. The generator has then not
    moved.

Examples
--------
>>> import numpy as np
>>> from llama2cpp import Sampler
>>> logits = np.array([1.0, 3.0, 2.0], dtype=np.float32)
>>> Sampler(temperature=0, repetition_penalty=2.0).sample(logits, history=[1])
2
>>> Sampler(temperature=0).sample(logits, mask=np.array([True, False, True]))
2
)doc";

constexpr const char* kCopyDoc = R"doc(A sampler of its own that draws from here on what this one would.

Returns
-------
Sampler

Examples
--------
>>> import numpy as np
>>> from llama2cpp import Sampler
>>> logits = np.zeros(100, dtype=np.float32)
>>> sampler = Sampler(seed=7)
>>> twin = sampler.copy()
>>> sampler.sample(logits) == twin.sample(logits)
True
)doc";

using FloatArray = py::array_t<float, py::array::c_style>;
using CastArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

float narrow(const char* name, double value) {
  constexpr double kLargest = std::numeric_limits<float>::max();
  LLAMA2CPP_CHECK(!std::isfinite(value) || std::abs(value) <= kLargest, name, " is ", value,
                  ", which float32 cannot hold");
  return static_cast<float>(value);
}

// The shortest decimal that stands for this float32: 0.9 and not 0.8999999761581421.
py::float_ widen(float value) { return py::float_(py::str(py::module_::import("numpy").attr("float32")(value))); }

std::uint64_t to_seed(const py::object& object) {
  if (object.is_none()) {
    std::random_device random;
    return (std::uint64_t{random()} << 32) | random();
  }
  const std::optional<py::object> number = as_index(object);
  if (!number) throw py::type_error(cat("Sampler: seed is ", shown(object), ", expected an integer or None"));
  const std::uint64_t seed = PyLong_AsUnsignedLongLong(number->ptr());
  if (PyErr_Occurred() != nullptr) {
    PyErr_Clear();
    throw std::invalid_argument(cat("Sampler: seed is ", std::string(py::repr(*number)), ", expected 0 to 2**64 - 1"));
  }
  return seed;
}

FloatArray to_logits(const py::object& object) {
  if (py::isinstance<FloatArray>(object)) return py::reinterpret_borrow<FloatArray>(object);
  const bool numbers = py::isinstance<py::list>(object) || py::isinstance<py::tuple>(object);
  const py::array array = numbers ? py::array(CastArray::ensure(object)) : py::array::ensure(object);
  LLAMA2CPP_CHECK(array, "logits are of type ", type_name(object), ", expected a float32 array");
  const py::object can_cast = py::module_::import("numpy").attr("can_cast");
  LLAMA2CPP_CHECK(py::cast<bool>(can_cast(array.dtype(), py::dtype::of<float>())), "logits have dtype ",
                  std::string(py::str(array.dtype())), ", expected float32");
  return CastArray::ensure(array);
}

// {id: bias} in the order of ids.
std::vector<std::pair<std::int32_t, float>> to_bias(const py::object& given) {
  std::vector<std::pair<std::int32_t, float>> bias;
  if (given.is_none()) return bias;
  if (!py::hasattr(given, "items")) {
    throw py::type_error(cat("Sampler: logit_bias is ", shown(given), ", expected a dict of ids and numbers, or None"));
  }
  for (const py::handle item : given.attr("items")()) {
    const auto [id, number] = item.cast<std::pair<py::object, py::object>>();
    const double value = PyFloat_AsDouble(number.ptr());
    if (PyErr_Occurred() != nullptr || is_bool(number)) {
      PyErr_Clear();
      throw py::type_error(
          cat("Sampler: logit_bias[", std::string(py::repr(id)), "] is ", shown(number), ", expected a number"));
    }
    bias.emplace_back(to_id(id), narrow("a value of logit_bias", value));
  }
  std::sort(bias.begin(), bias.end());
  return bias;
}

py::dict bias_dict(const SamplerOptions& options) {
  py::dict bias;
  for (const auto& [id, value] : options.logit_bias) bias[py::int_(id)] = widen(value);
  return bias;
}

std::int32_t sample(Sampler& sampler, const py::object& object, const py::object& history,
                    Int<"Sampler.sample", "prompt_tokens"> prompt_tokens, const py::object& mask) {
  const FloatArray logits = to_logits(object);
  LLAMA2CPP_CHECK(logits.ndim() == 1, "logits have shape ", std::string(py::str(logits.attr("shape"))),
                  ", expected one dimension [vocab_size]");
  const std::vector<std::int32_t> before = history.is_none() ? std::vector<std::int32_t>() : to_ids(history);
  LLAMA2CPP_CHECK(prompt_tokens >= 0, "prompt_tokens is ", std::int64_t{prompt_tokens}, ", expected 0 or more");
  const Mask allowed = to_mask(mask, logits.size());
  const ObjectLock turn(sampler);
  return sampler.sample({logits.data(), static_cast<std::size_t>(logits.size())},
                        {.history = before,
                         .prompt_tokens = static_cast<std::size_t>(std::int64_t{prompt_tokens}),
                         .mask = allowed.words()});
}

std::string repr(const Sampler& sampler) {
  const SamplerOptions& o = sampler.options();
  const auto text = [](float value) { return std::string(py::repr(widen(value))); };
  return cat("Sampler(temperature=", text(o.temperature), ", top_p=", text(o.top_p), ", top_k=", o.top_k,
             ", min_p=", text(o.min_p), ", seed=", o.seed, ", repetition_penalty=", text(o.repetition_penalty),
             o.presence_penalty == 0.0F ? "" : cat(", presence_penalty=", text(o.presence_penalty)),
             o.frequency_penalty == 0.0F ? "" : cat(", frequency_penalty=", text(o.frequency_penalty)),
             o.logit_bias.empty() ? "" : cat(", logit_bias=", std::string(py::repr(bias_dict(o)))), ")");
}

// What a pickle holds: visit(name, member) for each argument of the constructor. The generator's state is beside them.
template <class Visit>
void each_option(Visit visit) {
  visit("temperature", &SamplerOptions::temperature);
  visit("top_p", &SamplerOptions::top_p);
  visit("top_k", &SamplerOptions::top_k);
  visit("min_p", &SamplerOptions::min_p);
  visit("seed", &SamplerOptions::seed);
  visit("repetition_penalty", &SamplerOptions::repetition_penalty);
  visit("presence_penalty", &SamplerOptions::presence_penalty);
  visit("frequency_penalty", &SamplerOptions::frequency_penalty);
  visit("logit_bias", &SamplerOptions::logit_bias);
}

constexpr const char* kState = "state";

py::dict get_state(const Sampler& sampler) {
  const ObjectLock turn(sampler);
  py::dict state;
  each_option([&](const char* name, auto member) { state[name] = sampler.options().*member; });
  state[kState] = sampler.state();
  return state;
}

Sampler set_state(const py::object& given) {
  if (!py::isinstance<py::dict>(given)) {
    throw py::type_error(cat("a pickled Sampler is ", shown(given),
                             ", expected a dict; a pickle of an older version has to be made again"));
  }
  const py::dict state(given);
  std::size_t known = 0;
  const auto take = [&](const char* name, auto& value) {
    LLAMA2CPP_CHECK(state.contains(name), "a pickled Sampler has no '", name, "'");
    try {
      value = state[name].cast<std::remove_reference_t<decltype(value)>>();
    } catch (const py::cast_error&) {
      throw py::type_error(cat("a pickled Sampler: ", name, " is ", shown(state[name]), ", expected a number"));
    }
    ++known;
  };
  SamplerOptions options;
  each_option([&](const char* name, auto member) { take(name, options.*member); });
  std::uint64_t generator = 0;
  take(kState, generator);
  LLAMA2CPP_CHECK(known == state.size(), "a pickled Sampler has ", state.size(), " fields, expected ", known);
  Sampler sampler(options);
  sampler.set_state(generator);
  return sampler;
}

}  // namespace

void register_sampler(py::module_& module) {
  const auto copy = [](const Sampler& sampler) {
    const ObjectLock turn(sampler);
    return sampler;
  };
  const auto number = [](float SamplerOptions::*option) {
    return [option](const Sampler& sampler) { return widen(sampler.options().*option); };
  };
  py::class_<Sampler>(module, "Sampler", kSamplerDoc, py::is_final())
      .def(py::init([](double temperature, double top_p, Int<"Sampler", "top_k"> top_k, double min_p,
                       const py::object& seed, double repetition_penalty, double presence_penalty,
                       double frequency_penalty, const py::object& logit_bias) {
             return Sampler({
                 .temperature = narrow("temperature", temperature),
                 .top_p = narrow("top_p", top_p),
                 .top_k = top_k,
                 .min_p = narrow("min_p", min_p),
                 .repetition_penalty = narrow("repetition_penalty", repetition_penalty),
                 .seed = to_seed(seed),
                 .presence_penalty = narrow("presence_penalty", presence_penalty),
                 .frequency_penalty = narrow("frequency_penalty", frequency_penalty),
                 .logit_bias = to_bias(logit_bias),
             });
           }),
           py::arg("temperature") = 1.0, py::arg("top_p") = 0.9, py::arg("top_k") = 0, py::arg("min_p") = 0.0,
           py::arg("seed") = py::none(), py::arg("repetition_penalty") = 1.0, py::arg("presence_penalty") = 0.0,
           py::arg("frequency_penalty") = 0.0, py::arg("logit_bias") = py::none())
      .def("sample", &sample, py::arg("logits"), py::arg("history") = py::tuple(), py::arg("prompt_tokens") = 0,
           py::arg("mask") = py::none(), kSampleDoc)
      .def("copy", copy, kCopyDoc)
      .def("__copy__", copy)
      .def(
          "__deepcopy__", [copy](const Sampler& sampler, const py::dict&) { return copy(sampler); }, py::arg("memo"))
      .def("__repr__", &repr)
      .def(py::pickle(&get_state, &set_state))
      .def_property_readonly("temperature", number(&SamplerOptions::temperature), "What logits are divided by.")
      .def_property_readonly("top_p", number(&SamplerOptions::top_p), "The share of probability kept; 0 or 1: all.")
      .def_property_readonly(
          "top_k", [](const Sampler& sampler) { return sampler.options().top_k; }, "How many ids are kept; 0: all.")
      .def_property_readonly("min_p", number(&SamplerOptions::min_p),
                             "The least probability kept, as a fraction of the largest.")
      .def_property_readonly(
          "seed", [](const Sampler& sampler) { return sampler.options().seed; }, "What the generator began with.")
      .def_property_readonly("repetition_penalty", number(&SamplerOptions::repetition_penalty),
                             "What the logits of earlier ids are divided by.")
      .def_property_readonly("presence_penalty", number(&SamplerOptions::presence_penalty),
                             "What is taken off the logits of ids that the text has.")
      .def_property_readonly("frequency_penalty", number(&SamplerOptions::frequency_penalty),
                             "What is taken off them each time that the text has them.")
      .def_property_readonly(
          "logit_bias", [](const Sampler& sampler) { return bias_dict(sampler.options()); },
          "What is added to the logits of ids.");
}

}  // namespace llama2cpp::bind
