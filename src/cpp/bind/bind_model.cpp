// Model for Python: opening files, models from arrays, weights as arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>

#include "bind/bind.h"
#include "bind/call_hooks.h"
#include "bind/file_path.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/thread_number.h"
#include "core/thread_pool.h"
#include "format/f32.h"
#include "format/weight_rows.h"
#include "io/arrays.h"
#include "model/fingerprint.h"
#include "model/gradients.h"
#include "model/model.h"
#include "model/session.h"
#include "model/session_file.h"
#include "model/unembed.h"
#include "text/tokenizer.h"

namespace llama2cpp::bind {
namespace {

// The output of a model on rows of any leading shape: x [..., dim] -> [..., vocab_size].
py::array_t<float> unembed_array(const Model& model, const py::array_t<float, py::array::c_style>& x,
                                 Flag<"Model.unembed", "norm"> norm) {
  LLAMA2CPP_CHECK(x.ndim() >= 1 && x.shape(x.ndim() - 1) == model.config().dim, "x has shape ",
                  std::string(py::str(x.attr("shape"))), ", expected [..., ", model.config().dim, "]");
  std::vector<py::ssize_t> shape(x.shape(), x.shape() + x.ndim());
  shape.back() = model.config().vocab_size;
  auto logits = new_array<float>(shape, "an array of logits");
  const std::span<const float> in(x.data(), static_cast<std::size_t>(x.size()));
  const std::span<float> out(logits.mutable_data(), static_cast<std::size_t>(logits.size()));
  const ReleasedGil released;
  unembed(model, in, norm, out, Poll(model.backend()));
  return logits;
}

// A Weight whose plane is the array's memory. One-dimensional arrays are matrices of one row.
Weight weight_from_array(const std::string& name, const py::handle& object) {
  if (!py::isinstance<py::array>(object)) {
    throw std::invalid_argument(cat("'", name, "' is of type ", type_name(object), ", expected a NumPy array"));
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  const std::string shape = py::str(array.attr("shape"));
  LLAMA2CPP_CHECK(py::isinstance<py::array_t<float>>(array), "'", name, "' has dtype ",
                  std::string(py::str(array.dtype())), ", expected float32");
  LLAMA2CPP_CHECK(array.ndim() == 1 || array.ndim() == 2, "'", name, "' has shape ", shape,
                  ", expected one or two dimensions");
  LLAMA2CPP_CHECK(array.size() > 0, "'", name, "' has shape ", shape, ", which is empty");
  const py::ssize_t last = array.ndim() - 1;
  LLAMA2CPP_CHECK(array.strides(last) == sizeof(float) || array.shape(last) == 1, "'", name,
                  "' has rows that are not contiguous; pass numpy.ascontiguousarray of it");

  Weight weight;
  weight.name = name;
  weight.format = &kF32;
  weight.rows = array.ndim() == 2 ? array.shape(0) : 1;
  weight.cols = array.shape(last);
  Plane& plane = weight.planes[0];
  plane.data = static_cast<const std::byte*>(array.data());
  plane.row_bytes = array.ndim() == 2 ? array.strides(0) : array.nbytes();
  plane.bytes = static_cast<std::size_t>(array.nbytes());
  // The array is let go with the GIL held, whichever thread drops the model.
  auto* kept = new py::object(array);
  plane.owner = Buffer::wrap(plane.data, plane.bytes, std::shared_ptr<const void>(kept, [](const void* p) {
                               const py::gil_scoped_acquire gil;
                               delete static_cast<const py::object*>(p);
                             }));
  return weight;
}

std::vector<Weight> weights_from_arrays(const py::dict& arrays) {
  std::vector<Weight> weights;
  for (const auto& [name, array] : arrays) weights.push_back(weight_from_array(py::str(name), array));
  return weights;
}

// float32: a read-only view where the file holds aligned floats, a decoded copy elsewhere.
py::array weight_array(const Checkpoint& checkpoint, const Weight& weight) {
  const Plane& plane = weight.planes[0];
  std::vector<py::ssize_t> shape = {weight.rows, weight.cols};
  std::vector<py::ssize_t> strides = {plane.row_bytes, sizeof(float)};
  if (is_vector(checkpoint, weight)) {
    shape.erase(shape.begin());
    strides.erase(strides.begin());
  }
  if (const float* const floats = find_floats(weight)) {
    py::array view(py::dtype::of<float>(), shape, strides, floats, keeper(plane.owner));
    view.attr("setflags")(py::arg("write") = false);
    check_files(weight);
    return view;
  }
  auto copy = new_array<float>(shape, "an array of a weight's values");
  float* const out = copy.mutable_data();
  const ReleasedGil released;
  decode(weight, out);
  return copy;
}

py::array weight_rows(const Weight& weight, const std::vector<std::int64_t>& rows) {
  auto out = new_array<float>({static_cast<py::ssize_t>(rows.size()), static_cast<py::ssize_t>(weight.cols)},
                              "an array of a weight's rows");
  float* const to = out.mutable_data();
  const ReleasedGil released;
  decode_rows(weight, rows, to);
  return out;
}

py::array weight_columns(const Weight& weight, std::int64_t begin, std::int64_t count) {
  check_columns(weight, begin, count);
  auto out = new_array<float>({static_cast<py::ssize_t>(weight.rows), static_cast<py::ssize_t>(count)},
                              "an array of a weight's columns");
  float* const to = out.mutable_data();
  const ReleasedGil released;
  decode_columns(weight, begin, count, to);
  return out;
}

// Lets the pages of a weight in a mapped file leave memory; they come back when they are touched.
void release_weight(const Weight& weight) {
  for (const Plane& plane : weight.planes) plane.owner.drop_pages(plane.data, plane.bytes);
}

std::shared_ptr<Model> with_weights(const Model& model, const py::dict& arrays,
                                    Flag<"Model.with_weights", "untie"> untie) {
  const Checkpoint& checkpoint = model.checkpoint();
  std::vector<Weight> edits;
  for (const auto& item : arrays) {
    std::string name = py::str(item.first);
    const auto own = find_part(Naming::meta, name);  // a tied model's output, which has no name in the file
    if (!checkpoint.weights.contains(name) && own)
      name = weight_name(checkpoint.naming, own->part, own->layer, own->expert);
    edits.push_back(weight_from_array(name, item.second));
  }
  const ReleasedGil released;
  return std::make_shared<Model>(model, edits, untie, Poll(model.backend()));
}

const Weight& find_weight(const Model& model, const std::string& name) {
  const auto found = model.checkpoint().weights.find(name);
  if (found == model.checkpoint().weights.end()) throw py::key_error(name);
  return found->second;
}

// What the file has otherwise than the checkpoint: its name -> the weights that it is, how many experts, whether turned, and
// whether it is a gain without its 1.
py::dict file_tensors(const Model& model) {
  py::dict d;
  for (const auto& [name, tensor] : model.checkpoint().file_tensors) {
    d[py::str(name)] = py::make_tuple(tensor.weights, tensor.experts, tensor.turned, tensor.stored.format != nullptr);
  }
  return d;
}

// The gain that the file has by that name, without its 1.
py::array stored_gain(const Model& model, const std::string& name) {
  const auto found = model.checkpoint().file_tensors.find(name);
  if (found == model.checkpoint().file_tensors.end() || found->second.stored.format == nullptr)
    throw py::key_error(name);
  return weight_array(model.checkpoint(), found->second.stored);
}

// Llama's own name of each matrix that the file has -> the file's: {"layers.0.attention.wq.weight": "blk.0.attn_q.weight"}.
std::map<std::string, std::string> part_names(const Model& model) {
  std::map<std::string, std::string> names;
  const Checkpoint& checkpoint = model.checkpoint();
  for (const auto& [name, weight] : checkpoint.weights) {
    const auto found = find_part(checkpoint.naming, name);
    if (found) names.emplace(weight_name(Naming::meta, found->part, found->layer, found->expert), name);
  }
  return names;
}

py::dict weight_info(const Checkpoint& checkpoint, const Weight& weight) {
  std::size_t bytes = 0;
  for (const Plane& plane : weight.planes) bytes += plane.bytes;
  py::dict info;
  info["format"] = std::string(weight.format->name);
  py::tuple shape = py::make_tuple(weight.rows, weight.cols);
  if (is_vector(checkpoint, weight)) shape = py::make_tuple(weight.cols);
  info["shape"] = shape;
  info["bytes"] = bytes;
  return info;
}

ModelOptions make_options(const std::string& backend, std::optional<int> threads, std::optional<std::int64_t> context,
                          const std::string& kv, const std::string& activations, const std::string& pack) {
  LLAMA2CPP_CHECK(!context || *context >= 1, "context is ", context.value_or(0), ", expected 1 or more, or None");
  return {backend, threads ? checked_threads(threads) : 0, context.value_or(0), kv, activations, pack};
}

// Making a device and testing it takes a while, and the answer stays the same. Not where there is none, which is told at once;
// nor in a fork, where Metal does not work. The GIL is held.
MetalStatus known_metal_status() {
  static MetalStatus known;
  static int forks = -1;
  if (known.device.empty() || forks != fork_generation()) {
    known = metal_status();
    forks = fork_generation();
  }
  return known;
}

py::dict build_info() {
  py::dict info;
  info["version"] = LLAMA2CPP_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "g++ " __VERSION__;
#elif defined(_MSC_VER)
  info["compiler"] = "msvc " + std::to_string(_MSC_VER);
#endif
  const MetalStatus metal = known_metal_status();
  if (metal.device.empty()) {
    info["backends"] = py::make_tuple("cpu");
    info["no_metal"] = metal.reason;
  } else {
    info["backends"] = py::make_tuple("cpu", "metal");
    info["device"] = metal.device;
  }
  info["isa"] = std::string(make_backend("cpu", 1)->isa());
  info["threads"] = default_threads();
  return info;
}

}  // namespace

void register_model(py::module_& module) {
  using py::arg;
  const py::kw_only kw;

  module.def("build_info", &build_info, R"(What this build is and what it found on this machine.

Returns
-------
dict
    ``version``, ``compiler``, ``backends``, ``isa`` (the kernels that a model made now would run on the CPU) and
    ``threads`` (how many it would use); ``device``, the GPU that the backend "metal" would use, or ``no_metal``, why
    there is none.

Examples
--------
>>> import llama2cpp
>>> llama2cpp.build_info()["backends"][0]
'cpu'
)");

  py::class_<Model, std::shared_ptr<Model>>(module, "Model", "Config and weights on a backend; see llama2cpp.Model.")
      .def_static(
          "open",
          [](const FilePath& path, const std::string& backend, std::optional<Int<"load", "threads", int>> threads,
             std::optional<Int<"load", "context">> context, const std::string& kv, const std::string& activations,
             const std::string& pack, Flag<"Model.open", "mmap"> mmap) {
            const ModelOptions options = make_options(backend, threads, context, kv, activations, pack);
            const ReleasedGil released;
            return std::make_shared<Model>(open_checkpoint(path.utf8, mmap), options);
          },
          arg("path"), kw, arg("backend") = "auto", arg("threads") = py::none(), arg("context") = py::none(),
          arg("kv_dtype") = "auto", arg("activation_dtype") = "auto", arg("pack") = "auto", arg("mmap") = true)
      .def_static(
          "from_arrays",
          [](const Config& config, const py::dict& arrays, const std::string& backend,
             std::optional<Int<"from_arrays", "threads", int>> threads,
             std::optional<Int<"from_arrays", "context">> context, const std::string& kv,
             const std::string& activations, const std::string& pack) {
            const ModelOptions options = make_options(backend, threads, context, kv, activations, pack);
            std::vector<Weight> weights = weights_from_arrays(arrays);
            const ReleasedGil released;
            return std::make_shared<Model>(checkpoint_of_arrays(config, std::move(weights)), options);
          },
          arg("config"), arg("arrays"), kw, arg("backend") = "auto", arg("threads") = py::none(),
          arg("context") = py::none(), arg("kv_dtype") = "auto", arg("activation_dtype") = "auto", arg("pack") = "auto")
      .def_property_readonly("config", [](const Model& m) { return m.config(); })
      .def_property_readonly("path", [](const Model& m) { return m.checkpoint().path; })
      .def_property_readonly("file_format", [](const Model& m) { return m.checkpoint().file_format; })
      .def_property_readonly("fingerprint",
                             [](const Model& m) {
                               const ReleasedGil released;
                               return fingerprint(m.checkpoint());
                             })
      .def_property_readonly("model_type", [](const Model& m) { return m.checkpoint().model_type; })
      .def_property_readonly("generation_config", [](const Model& m) { return m.checkpoint().generation.json; })
      .def_property_readonly("generation_problem", [](const Model& m) { return m.checkpoint().generation.problem; })
      .def_property_readonly("tokenizer",
                             [](const Model& m) -> std::optional<Tokenizer> {  // a new one each time
                               const Vocabulary* vocabulary = m.checkpoint().vocabulary.get();
                               if (vocabulary == nullptr) return {};
                               warn_of(*vocabulary, 3);
                               const ReleasedGil released;
                               return Tokenizer(*vocabulary);
                             })
      .def_property_readonly("tokenizer_problem", [](const Model& m) { return m.checkpoint().no_vocabulary_reason; })
      .def_property_readonly("backend", [](const Model& m) { return std::string(m.backend().name()); })
      .def_property_readonly("isa", [](const Model& m) { return std::string(m.backend().isa()); })
      .def_property_readonly("threads", [](const Model& m) { return m.backend().threads(); })
      .def_property_readonly("context", &Model::context)
      .def_property_readonly("kv_dtype", [](const Model& m) { return std::string(kv_name(m.kv_dtype())); })
      .def_property_readonly("activation_dtype", [](const Model& m) { return m.activation_dtype(); })
      .def_property_readonly("pack", [](const Model& m) { return m.packed() ? "always" : "never"; })
      .def_property_readonly("matrix_bytes", &Model::matrix_bytes)
      .def("weight_names",
           [](const Model& m) {
             std::vector<std::string> names;
             for (const auto& [name, weight] : m.checkpoint().weights) names.push_back(name);
             return names;
           })
      .def(
          "weight",
          [](const Model& m, const std::string& name) { return weight_array(m.checkpoint(), find_weight(m, name)); },
          arg("name"))
      .def(
          "weight_rows",
          [](const Model& m, const std::string& name, const Ints<"weight_rows", "rows">& rows) {
            return weight_rows(find_weight(m, name), rows.values);
          },
          arg("name"), arg("rows"))
      .def(
          "weight_columns",
          [](const Model& m, const std::string& name, Int<"weight_columns", "begin"> begin,
             Int<"weight_columns", "count"> count) { return weight_columns(find_weight(m, name), begin, count); },
          arg("name"), arg("begin"), arg("count"))
      .def(
          "weight_info",
          [](const Model& m, const std::string& name) { return weight_info(m.checkpoint(), find_weight(m, name)); },
          arg("name"))
      .def("part_names", &part_names)
      .def("file_tensors", &file_tensors)
      .def("stored_gain", &stored_gain, arg("name"))
      .def(
          "release_weight", [](const Model& m, const std::string& name) { release_weight(find_weight(m, name)); },
          arg("name"))
      .def("with_weights", &with_weights, arg("arrays"), arg("untie") = false)
      .def("unembed", &unembed_array, arg("x"), arg("norm") = false)
      .def(
          "session",
          [](std::shared_ptr<Model> m, std::optional<Int<"session", "context">> given,
             std::shared_ptr<Adapter> adapter) {
            const std::optional<std::int64_t> context = given;
            LLAMA2CPP_CHECK(!context || *context >= 1, "context is ", context.value_or(0), ", expected 1 or more");
            return std::make_unique<Session>(std::move(m), context.value_or(0), std::move(adapter));
          },
          arg("context") = py::none(), arg("adapter") = py::none())
      .def(
          "load_session",
          [](std::shared_ptr<Model> m, const FilePath& path, std::optional<Int<"load_session", "context">> given,
             std::shared_ptr<Adapter> adapter) {
            const std::optional<std::int64_t> context = given;
            LLAMA2CPP_CHECK(!context || *context >= 1, "context is ", context.value_or(0), ", expected 1 or more");
            const ReleasedGil released;
            return load_session(std::move(m), path.utf8, context.value_or(0), poll_signals, std::move(adapter));
          },
          arg("path"), arg("context") = py::none(), arg("adapter") = py::none())
      .def("forward", &forward_many, arg("rows"), arg("hooks") = py::none(), arg("all_logits") = false,
           arg("start_at_layer") = py::none(), arg("residuals") = py::none())
      .def("feed", &feed_many, arg("rows"), arg("hooks") = py::none())
      .def("run_with_cache", &run_with_cache, arg("rows"), arg("places"), arg("positions") = py::none(),
           arg("stop_at_layer") = py::none(), arg("hooks") = py::none(), arg("start_at_layer") = py::none(),
           arg("residual") = py::none(), arg("logits") = true, arg("halves") = false)
      .def("gradients", &gradients, arg("rows"), arg("dlogits"), arg("places"), arg("positions") = py::none(),
           arg("stop") = PlaceList(), arg("stream") = std::vector<py::array>(),
           arg("given") = std::vector<std::tuple<int, std::int64_t, py::array>>())
      .def(
          "why_no_gradients", [](const Model& model) { return why_no_gradients(model); },
          "Why the model has no gradients; empty where it has.");
}

}  // namespace llama2cpp::bind
