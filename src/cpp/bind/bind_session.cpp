// Session for Python, and many sessions in one pass.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "bind/bind.h"
#include "bind/numpy.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "model/session.h"
#include "model/session_file.h"

namespace llama2cpp::bind {
namespace {

// A copy of the session's logits [vocab_size], or None.
py::object logits_array(const Session& session) {
  py::object array = py::none();
  session.with_logits([&](std::span<const float> logits) {
    if (!logits.empty()) array = py::array_t<float>(static_cast<py::ssize_t>(logits.size()), logits.data());
  });
  return array;
}

// [position, n_kv_heads, head_dim], writable, in the file's order of head_dim; the cache lies [n_kv_heads][position].
py::array kv_array(const Session& session, const Tensor& cache) {
  const py::ssize_t size = size_of(cache.dtype);
  const py::ssize_t row = cache.columns() * size;
  const py::dtype dtype = cache.dtype == DType::f16 ? py::dtype("e") : py::dtype::of<float>();
  return {dtype, std::vector<py::ssize_t>{session.position(), cache.dim(0), cache.columns()},
          std::vector<py::ssize_t>{row, cache.dim(1) * row, size}, cache.data, keeper(session.kv().memory())};
}

void feed(std::span<const Work> work) {
  const ReleasedGil released;
  run(work, {}, [] { poll_signals(); });
}

py::array_t<float> empty_logits(const Model& model) { return py::array_t<float>(model.config().vocab_size); }

py::array step(Session& session, const py::object& token) {
  const std::int32_t id[] = {to_id(token)};
  py::array_t<float> logits = empty_logits(session.model());
  const Work work[] = {
      {.session = &session, .tokens = id, .all_logits = nullptr, .last_logits = logits.mutable_data()}};
  feed(work);
  return logits;
}

py::array prefill(Session& session, const py::object& tokens, bool all_logits) {
  const std::vector<std::int32_t> ids = to_ids(tokens);
  const py::ssize_t vocab_size = session.model().config().vocab_size;
  py::array_t<float> logits = all_logits ? py::array_t<float>({static_cast<py::ssize_t>(ids.size()), vocab_size})
                                         : empty_logits(session.model());
  float* out = logits.mutable_data();
  const Work work[] = {{.session = &session,
                        .tokens = ids,
                        .all_logits = all_logits ? out : nullptr,
                        .last_logits = all_logits ? nullptr : out}};
  feed(work);
  return logits;
}

}  // namespace

py::list forward_many(const Model& model, const py::sequence& rows) {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<Work> work;
  py::list logits;
  for (const py::handle row : rows) {
    const auto [session, tokens] = row.cast<std::pair<Session*, py::object>>();
    LLAMA2CPP_CHECK(session != nullptr && &session->model() == &model, "a session belongs to another model");
    ids.push_back(to_ids(tokens));
    py::array_t<float> array = empty_logits(model);
    work.push_back({.session = session, .tokens = {}, .all_logits = nullptr, .last_logits = array.mutable_data()});
    logits.append(std::move(array));
  }
  for (std::size_t i = 0; i < ids.size(); ++i) work[i].tokens = ids[i];
  feed(work);
  return logits;
}

void register_session(py::module_& module) {
  using py::arg;

  py::class_<Session>(module, "Session", "One sequence on a model; see llama2cpp.Session.")
      .def_property_readonly("position", &Session::position)
      .def_property_readonly("context", &Session::context)
      .def_property_readonly("tokens", &Session::tokens)
      .def_property_readonly("logits", &logits_array)
      .def("step", &step, arg("token"))
      .def("prefill", &prefill, arg("tokens"), arg("all_logits") = false)
      .def("rewind", &Session::rewind, arg("position"), py::call_guard<ReleasedGil>())
      .def("fork", &Session::fork, py::call_guard<ReleasedGil>())
      .def(
          "save",
          [](Session& session, const std::filesystem::path& path) {
            const ReleasedGil released;
            save_session(session, utf8(path), [] { poll_signals(); });
          },
          arg("path"))
      .def(
          "keys", [](const Session& s, std::int64_t layer) { return kv_array(s, s.kv().keys(layer)); }, arg("layer"))
      .def(
          "values", [](const Session& s, std::int64_t layer) { return kv_array(s, s.kv().values(layer)); },
          arg("layer"));
}

}  // namespace llama2cpp::bind
