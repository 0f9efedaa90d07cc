// Session for Python, and many sessions in one pass.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/call_hooks.h"
#include "bind/file_path.h"
#include "bind/integer.h"
#include "bind/mask.h"
#include "bind/numpy.h"
#include "bind/object_lock.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/memory_needs.h"
#include "core/q8_rows.h"
#include "model/session.h"
#include "model/session_file.h"
#include "sample/sampler.h"

namespace llama2cpp::bind {
namespace {

// [vocab_size], holding anything. Large ones are the model's to use again: the C library would ask the system for each,
// which takes longer than a step of Python's.
py::array_t<float> new_logits(const Model& model) {
  constexpr std::size_t kLarge = 65536;  // bytes
  const py::ssize_t vocab_size = model.config().vocab_size;
  const std::size_t bytes = static_cast<std::size_t>(vocab_size) * sizeof(float);
  return bytes < kLarge ? py::array_t<float>(vocab_size) : float_array(model.borrow_memory(bytes), 0, {vocab_size});
}

// A copy of the session's logits [vocab_size], or None.
py::object logits_array(const Session& session) {
  py::array_t<float> array = new_logits(session.model());
  bool there = false;
  session.with_logits([&](std::span<const float> logits) {
    std::copy(logits.begin(), logits.end(), array.mutable_data());
    there = !logits.empty();
  });
  return there ? py::object(std::move(array)) : py::none();
}

// Draws the id that follows the session's tokens, which are the sampler's history: the first prompt_tokens are the prompt.
std::int32_t sample(const Session& session, Sampler& sampler, Int<"Session.sample", "prompt_tokens"> prompt_tokens,
                    const py::object& mask) {
  const SamplerOptions& options = sampler.options();
  const Mask allowed = to_mask(mask, session.model().config().vocab_size);
  std::vector<std::int32_t> history;
  if (options.repetition_penalty != 1.0F || options.presence_penalty != 0.0F || options.frequency_penalty != 0.0F) {
    history = session.tokens();
  }
  LLAMA2CPP_CHECK(prompt_tokens >= 0, "prompt_tokens is ", std::int64_t{prompt_tokens}, ", expected 0 or more");
  const std::size_t prompt = std::min(static_cast<std::size_t>(std::int64_t{prompt_tokens}), history.size());
  std::int32_t id = 0;
  const ObjectLock turn(sampler);
  session.with_logits([&](std::span<const float> logits) {
    LLAMA2CPP_CHECK(!logits.empty(), "the session has no logits: it is new, or was rewound");
    id = sampler.sample(logits, {.history = history, .prompt_tokens = prompt, .mask = allowed.words()});
  });
  return id;
}

std::int64_t checked_start(std::int64_t layer, const Config& config) {
  LLAMA2CPP_CHECK(layer >= 0 && layer <= config.n_layers, "start_at_layer is ", layer, ", expected 0 to ",
                  config.n_layers);
  return layer;
}

using AnyFloats = py::array_t<float, py::array::c_style | py::array::forcecast>;

// What a cache in q8_0 stands for: a copy.
py::array widened_kv(const Session& session, const Tensor& cache) {
  const std::int64_t positions = session.position();
  const std::int64_t heads = cache.dim(0);
  const std::int64_t head_dim = cache.columns();
  auto out = new_array<float>({positions, heads, head_dim}, "an array of keys or values");
  float* const to = out.mutable_data();
  for (std::int64_t head = 0; head < heads; ++head) {
    for (std::int64_t p = 0; p < positions; ++p) {
      const auto* const row = static_cast<const Q8Block*>(cache.data) + (head * cache.dim(1) + p) * cache.row_stride;
      widen_q8(row, head_dim, to + (p * heads + head) * head_dim);
    }
  }
  return out;
}

// [position, n_kv_heads, head_dim], writable, in the file's order of head_dim; the cache lies [n_kv_heads][position].
py::array kv_array(const Session& session, const Tensor& cache) {
  if (cache.dtype == DType::q8_0) return widened_kv(session, cache);
  const py::ssize_t size = size_of(cache.dtype);
  const py::ssize_t row = cache.columns() * size;
  const py::dtype dtype = cache.dtype == DType::f16 ? py::dtype("e") : py::dtype::of<float>();
  return {dtype, std::vector<py::ssize_t>{session.position(), cache.dim(0), cache.columns()},
          std::vector<py::ssize_t>{row, cache.dim(1) * row, size}, cache.data, keeper(session.kv().memory())};
}

// Stores keys and values [T, n_kv_heads, head_dim] from position `at` on: the one way into a cache whose arrays are copies,
// which q8_0's are.
void store_kv(Session& session, std::int64_t layer, std::int64_t at, const AnyFloats& keys, const AnyFloats& values) {
  const Tensor cache = session.kv().keys(layer);
  const py::ssize_t tokens = keys.ndim() == 3 ? keys.shape(0) : 0;
  for (const AnyFloats* const array : {&keys, &values}) {
    LLAMA2CPP_CHECK(array->ndim() == 3 && array->shape(0) == tokens && array->shape(1) == cache.dim(0) &&
                        array->shape(2) == cache.columns(),
                    "keys and values have shape ", std::string(py::str(array->attr("shape"))), ", expected [", tokens,
                    ", ", cache.dim(0), ", ", cache.columns(), "]");
  }
  if (tokens == 0) return;
  AttentionSpan span;
  span.count = tokens;
  span.position = at;
  span.keys = cache;
  span.values = session.kv().values(layer);
  const float* const keys_from = keys.data();
  const float* const values_from = values.data();
  const ReleasedGil released;
  const SessionLock held(session, poll_signals);
  LLAMA2CPP_CHECK(at >= 0 && at + tokens <= session.position(), "positions ", at, " to ", at + tokens,
                  " are not in the session, which has ", session.position());
  Backend& backend = session.model().backend();
  const Backend::Lease lease(backend, poll_signals);
  const std::int64_t columns = cache.dim(0) * cache.columns();
  const Vector memory = backend.make_vector(2 * tokens * columns);  // the backend's ops read no other
  const auto copied = [&](const float* numbers, std::int64_t place) {
    float* const to = memory.view.row(0) + place * tokens * columns;
    std::copy_n(numbers, tokens * columns, to);
    return Tensor(to, {tokens, columns});
  };
  backend.store_kv(copied(keys_from, 0), copied(values_from, 1), {&span, 1});
  backend.sync();
}

void run_released(std::span<const Work> work, const py::object& call, const Model& model,
                  std::optional<std::int64_t> start_at_layer = {}) {
  Hooks hooks = start_at_layer && call.is_none() ? Hooks(model.config(), model.backend()) : CallHooks::of(call, model);
  if (start_at_layer) hooks.start_at_layer = checked_start(*start_at_layer, model.config());
  const ReleasedGil released;
  run(work, hooks, Poll(model.backend()));
}

// [count, vocab_size], for the logits after each of some tokens.
py::array_t<float> all_logits_of(const Model& model, std::size_t count) {
  const py::ssize_t vocab_size = model.config().vocab_size;
  const std::size_t bytes = count * static_cast<std::size_t>(vocab_size) * sizeof(float);
  if (static_cast<double>(bytes) >= kWorthChecking) {
    need_memory(static_cast<double>(bytes), cat("the logits after each of ", count, " tokens"), "",
                "take fewer tokens at a time, or the last one's logits only");
  }
  return float_array(model.borrow_memory(bytes), 0, {static_cast<py::ssize_t>(count), vocab_size});
}

// Residual streams [tokens, dim], whose number must be that of the tokens.
const float* checked_residual(const FloatRows& residual, std::size_t tokens, const Model& model) {
  const std::int64_t dim = model.config().dim;
  LLAMA2CPP_CHECK(
      residual.ndim() == 2 && residual.shape(0) == static_cast<py::ssize_t>(tokens) && residual.shape(1) == dim,
      "the residual stream has shape ", std::string(py::str(residual.attr("shape"))), ", expected [", tokens, ", ", dim,
      "]");
  return residual.data();
}

py::array step(Session& session, const py::object& token, const py::object& hooks) {
  const std::int32_t id[] = {to_id(token)};
  py::array_t<float> logits = new_logits(session.model());
  const Work work[] = {
      {.session = &session, .tokens = id, .all_logits = nullptr, .last_logits = logits.mutable_data()}};
  run_released(work, hooks, session.model());
  return logits;
}

py::array prefill(Session& session, const py::object& tokens, Flag<"Session.prefill", "all_logits"> all_logits,
                  const py::object& hooks) {
  const std::vector<std::int32_t> ids = to_ids(tokens);
  Work work = {.session = &session, .tokens = ids, .all_logits = nullptr, .last_logits = nullptr};
  py::array_t<float> logits;
  if (all_logits) {
    logits = all_logits_of(session.model(), ids.size());
    work.all_logits = logits.mutable_data();
  } else {
    logits = new_logits(session.model());
    work.last_logits = logits.mutable_data();
  }
  run_released({&work, 1}, hooks, session.model());
  return logits;
}

// Feeds residual streams [T, dim] for the tokens that the session was rewound over, to the layers from one on.
py::array prefill_from(Session& session, const FloatRows& residual,
                       Int<"Session.prefill_from", "start_at_layer"> start_at_layer,
                       Flag<"Session.prefill_from", "all_logits"> all_logits, const py::object& hooks) {
  const Model& model = session.model();
  std::vector<std::int32_t> ids = session.ahead();
  const std::size_t count = residual.ndim() == 2 ? static_cast<std::size_t>(residual.shape(0)) : 0;
  LLAMA2CPP_CHECK(count <= ids.size(), "Session.prefill: the session was rewound over ", ids.size(),
                  " tokens, and there ", "are ", count,
                  " rows of the residual stream: layers before start_at_layer have no keys of others");
  ids.resize(count);
  py::array_t<float> logits = all_logits ? all_logits_of(model, count) : new_logits(model);
  Work work = {.session = &session, .tokens = ids, .all_logits = nullptr, .last_logits = nullptr};
  (all_logits ? work.all_logits : work.last_logits) = logits.mutable_data();
  work.residual = checked_residual(residual, count, model);
  work.known = true;
  run_released({&work, 1}, hooks, model, start_at_layer);
  return logits;
}

// cos and sin of a layer's rotary angles of positions [0, count): two arrays [count, rotary / 2].
py::tuple rotary(const Session& session, Int<"Session.rotary", "count"> given, Int<"Session.rotary", "layer"> layer) {
  const std::int64_t count = given;
  const Model& model = session.model();
  LLAMA2CPP_CHECK(count >= 0, "count is ", count, ", expected 0 or more");
  const Config& config = model.config();
  LLAMA2CPP_CHECK(layer >= 0 && layer < config.n_layers, "Session.rotary: layer is ", std::int64_t{layer},
                  ", expected 0 to ", config.n_layers - 1);
  const RopeAngles& angles = model.plan(layer).local_rope ? model.local_rope() : model.rope(session.context());
  const py::ssize_t pairs = model.config().rotary() / 2;
  auto cos = new_array<float>({static_cast<py::ssize_t>(count), pairs}, "an array of cosines");
  auto sin = new_array<float>({static_cast<py::ssize_t>(count), pairs}, "an array of sines");
  for (std::int64_t p = 0; p < count; ++p) {
    angles.at(p, cos.mutable_data() + p * pairs, sin.mutable_data() + p * pairs);
  }
  return py::make_tuple(cos, sin);
}

// One of the rows that Model.forward and Model.feed get: a session, and what it is fed.
std::pair<Session*, py::object> to_row(const py::handle row, const Model& model) {
  auto pair = row.cast<std::pair<Session*, py::object>>();
  LLAMA2CPP_CHECK(pair.first != nullptr && &pair.first->model() == &model, "a session belongs to another model");
  return pair;
}

// The memory of a writable float32 array [tokens, vocab_size].
float* logits_place(const py::handle object, std::size_t tokens, const Model& model) {
  using Array = py::array_t<float, py::array::c_style>;
  LLAMA2CPP_CHECK(py::isinstance<Array>(object), "the place of logits is ", shown(object),
                  ", expected a float32 array");
  auto array = py::reinterpret_borrow<Array>(object);
  LLAMA2CPP_CHECK(array.ndim() == 2 && std::cmp_equal(array.shape(0), tokens) &&
                      array.shape(1) == model.config().vocab_size && array.writeable(),
                  "the place of logits has shape ", std::string(py::str(array.attr("shape"))),
                  ", expected a writable array of ", tokens, " rows of ", model.config().vocab_size);
  return array.mutable_data();
}

}  // namespace

py::list forward_many(const Model& model, const py::sequence& rows, const py::object& hooks,
                      Flag<"Model.forward", "all_logits"> all_logits,
                      std::optional<Int<"Model.forward", "start_at_layer">> start_at_layer,
                      const std::optional<std::vector<FloatRows>>& residuals) {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<Work> work;
  py::list logits;
  for (const py::handle row : rows) {
    const auto [session, tokens] = to_row(row, model);
    ids.push_back(to_ids(tokens));
    py::array_t<float> array = all_logits ? all_logits_of(model, ids.back().size()) : new_logits(model);
    work.push_back({.session = session, .tokens = {}, .all_logits = nullptr, .last_logits = nullptr});
    (all_logits ? work.back().all_logits : work.back().last_logits) = array.mutable_data();
    logits.append(std::move(array));
  }
  LLAMA2CPP_CHECK(!residuals || residuals->size() == ids.size(), "there are ", residuals ? residuals->size() : 0,
                  " residual streams for ", ids.size(), " sessions");
  for (std::size_t i = 0; i < ids.size(); ++i) {
    work[i].tokens = ids[i];
    if (residuals) work[i].residual = checked_residual((*residuals)[i], ids[i].size(), model);
  }
  run_released(work, hooks, model, start_at_layer);
  return logits;
}

void feed_many(const Model& model, const py::sequence& rows, const py::object& hooks) {
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<Work> work;
  for (const py::handle row : rows) {
    const auto fields = row.cast<py::tuple>();
    const bool has_place = fields.size() == 3;
    py::object pair = fields;
    if (has_place) pair = fields[py::slice(0, 2, 1)];
    const auto [session, tokens] = to_row(pair, model);
    if (as_index(tokens)) {
      ids.push_back({to_id(tokens)});
    } else {
      ids.push_back(to_ids(tokens));
    }
    float* const place = has_place ? logits_place(fields[2], ids.back().size(), model) : nullptr;
    work.push_back(
        {.session = session, .tokens = {}, .all_logits = place, .copied = has_place, .last_logits = nullptr});
  }
  for (std::size_t i = 0; i < ids.size(); ++i) work[i].tokens = ids[i];
  run_released(work, hooks, model);
}

void register_session(py::module_& module) {
  using py::arg;

  module.def(
      "token_ids", [](const py::object& tokens) { return to_ids(tokens); }, arg("tokens"),
      "Token ids as a list, from whatever holds integers in order.");

  py::class_<Session>(module, "Session", "One sequence on a model; see llama2cpp.Session.")
      .def_property_readonly("config", [](const Session& s) { return s.model().config(); })
      .def_property_readonly("position", &Session::position)
      .def_property_readonly("context", &Session::context)
      .def_property_readonly("tokens", &Session::tokens)
      .def_property_readonly("model", [](const Session& s) { return std::const_pointer_cast<Model>(s.shared_model()); })
      .def_property_readonly("logits", &logits_array)
      .def("step", &step, arg("token"), arg("hooks") = py::none())
      .def("prefill", &prefill, arg("tokens"), arg("all_logits") = false, arg("hooks") = py::none())
      .def("prefill_from", &prefill_from, arg("residual"), arg("start_at_layer"), arg("all_logits") = false,
           arg("hooks") = py::none())
      .def("sample", &sample, arg("sampler"), arg("prompt_tokens") = 0, arg("mask") = py::none())
      .def("rotary", &rotary, arg("count"), arg("layer") = 0)
      .def(
          "rewind",
          [](Session& session, Int<"Session.rewind", "position"> position) {
            const ReleasedGil released;
            session.rewind(position, poll_signals);
          },
          arg("position"))
      .def(
          "assign",
          [](Session& session, Session& other, Int<"Session.assign", "position"> position) {
            const ReleasedGil released;
            session.assign(other, position, poll_signals);
          },
          arg("other"), arg("position"))
      .def(
          "fork",
          [](Session& session, std::optional<Int<"Session.fork", "position">> position) {
            const ReleasedGil released;
            return session.fork(poll_signals, position);
          },
          arg("position") = py::none())
      .def(
          "save_to",
          [](Session& session, const FilePath& path) {
            const ReleasedGil released;
            save_session(session, path.utf8, poll_signals);
          },
          arg("path"))
      .def(
          "keys", [](const Session& s, Int<"KVCache.keys", "layer"> layer) { return kv_array(s, s.kv().keys(layer)); },
          arg("layer"))
      .def(
          "store_kv",
          [](Session& s, Int<"Session.store_kv", "layer"> layer, Int<"Session.store_kv", "at"> at,
             const AnyFloats& keys, const AnyFloats& values) { store_kv(s, layer, at, keys, values); },
          arg("layer"), arg("at"), arg("keys"), arg("values"))
      .def(
          "values",
          [](const Session& s, Int<"KVCache.values", "layer"> layer) { return kv_array(s, s.kv().values(layer)); },
          arg("layer"));
}

}  // namespace llama2cpp::bind
