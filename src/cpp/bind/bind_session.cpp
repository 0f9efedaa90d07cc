// Session for Python, and many sessions in one pass.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <optional>

#include "bind/bind.h"
#include "bind/call_hooks.h"
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

void feed(std::span<const Work> work, const CallHooks* call, const Model& model) {
  const Hooks hooks = CallHooks::of(call, model);
  const ReleasedGil released;
  run(work, hooks, [] { poll_signals(); });
}

py::array_t<float> empty_logits(const Model& model) { return py::array_t<float>(model.config().vocab_size); }

py::array step(Session& session, const py::object& token, const CallHooks* hooks) {
  const std::int32_t id[] = {to_id(token)};
  py::array_t<float> logits = empty_logits(session.model());
  const Work work[] = {
      {.session = &session, .tokens = id, .all_logits = nullptr, .last_logits = logits.mutable_data()}};
  feed(work, hooks, session.model());
  return logits;
}

py::array prefill(Session& session, const py::object& tokens, bool all_logits, const CallHooks* hooks) {
  const std::vector<std::int32_t> ids = to_ids(tokens);
  const py::ssize_t vocab_size = session.model().config().vocab_size;
  const auto count = static_cast<py::ssize_t>(all_logits ? ids.size() : 1);
  const Buffer memory = session.model().borrow_memory(static_cast<std::size_t>(count * vocab_size) * sizeof(float));
  auto* const out = reinterpret_cast<float*>(memory.data());
  const Work work[] = {{.session = &session,
                        .tokens = ids,
                        .all_logits = all_logits ? out : nullptr,
                        .last_logits = all_logits ? nullptr : out}};
  feed(work, hooks, session.model());
  return all_logits ? float_array(memory, 0, {count, vocab_size}) : float_array(memory, 0, {vocab_size});
}

// cos and sin of the rotary angles of positions [0, count): two arrays [count, head_dim / 2].
py::tuple rotary(const Session& session, std::int64_t count) {
  const Model& model = session.model();
  LLAMA2CPP_CHECK(count >= 0, "count is ", count, ", expected 0 or more");
  const py::ssize_t pairs = model.config().head_dim / 2;
  py::array_t<float> cos({static_cast<py::ssize_t>(count), pairs});
  py::array_t<float> sin({static_cast<py::ssize_t>(count), pairs});
  for (std::int64_t p = 0; p < count; ++p) {
    model.rope().at(p, cos.mutable_data() + p * pairs, sin.mutable_data() + p * pairs);
  }
  return py::make_tuple(cos, sin);
}

}  // namespace

py::list forward_many(const Model& model, const py::sequence& rows, const CallHooks* hooks) {
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
  feed(work, hooks, model);
  return logits;
}

void register_session(py::module_& module) {
  using py::arg;

  py::class_<Session>(module, "Session", "One sequence on a model; see llama2cpp.Session.")
      .def_property_readonly("config", [](const Session& s) { return s.model().config(); })
      .def_property_readonly("position", &Session::position)
      .def_property_readonly("context", &Session::context)
      .def_property_readonly("tokens", &Session::tokens)
      .def_property_readonly("model", [](const Session& s) { return std::const_pointer_cast<Model>(s.shared_model()); })
      .def_property_readonly("logits", &logits_array)
      .def("step", &step, arg("token"), arg("hooks") = py::none())
      .def("prefill", &prefill, arg("tokens"), arg("all_logits") = false, arg("hooks") = py::none())
      .def("rotary", &rotary, arg("count"))
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
