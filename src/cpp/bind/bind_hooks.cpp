// Hooks for Python: callables that see and change activations, and run_with_cache.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/call_hooks.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/buffer.h"
#include "core/check.h"
#include "model/run_with_cache.h"
#include "observe/capture.h"
#include "observe/interventions.h"
#include "observe/recorder.h"

namespace llama2cpp::bind {
namespace {

PlaceSet place_set(const PlaceList& list, const Config& config) {
  PlaceSet set(config.n_layers);
  for (const Place& place : places_of(list, config)) set.add(place);
  return set;
}

std::vector<py::ssize_t> numpy_shape(const Tensor& activation, py::ssize_t sequences) {  // [sequences, ...]
  std::vector<py::ssize_t> shape = {sequences, activation.dim(0) / sequences};
  for (int axis = 1; axis < activation.rank; ++axis) shape.push_back(activation.dim(axis));
  return shape;
}

// A Python callable (activation, name, layer, session, position) -> None or array. Of a call that is shown to it as a
// whole, session and position are None.
class PythonHook final : public Hook {
 public:
  PythonHook(py::function function, py::list sessions, Scope scope, bool replaces)
      : Hook(Kind::callback, scope),
        function_(std::move(function)),
        sessions_(std::move(sessions)),
        replaces_(replaces) {}

  bool replaces() const override { return replaces_; }

  void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) override {
    const py::gil_scoped_acquire gil;
    const auto count = static_cast<std::size_t>(activation.rows() * activation.columns());
    auto* const values = static_cast<float*>(activation.data);
    // The callable gets memory of its own, which it may keep; what it has left there comes back.
    std::unique_ptr<float[]> memory(new float[count]);
    float* const shown = memory.get();
    std::memcpy(shown, values, count * sizeof(float));
    const py::capsule owner(shown, [](void* p) { delete[] static_cast<float*>(p); });
    memory.release();  // it is the capsule's now
    const bool whole = scope() == Scope::call;
    const std::vector<py::ssize_t> shape =
        numpy_shape(activation, whole ? static_cast<py::ssize_t>(sessions_.size()) : 1);
    const py::object layer_or_none = in_a_block(point) ? py::object(py::int_(layer)) : py::none();
    const py::object result = function_(py::array_t<float>(shape, shown, owner), point_name(point, layer),
                                        layer_or_none, whole ? py::object(py::none()) : sessions_[span.sequence],
                                        whole ? py::object(py::none()) : py::int_(span.position));
    if (result.is_none()) {
      std::memcpy(values, shown, count * sizeof(float));
    } else {
      const py::array_t<float> returned = checked(result, shape, point, layer);
      std::memcpy(values, returned.data(), count * sizeof(float));
    }
  }

 private:
  // A returned array as dense float32 of the activation's shape.
  static py::array_t<float> checked(const py::object& result, const std::vector<py::ssize_t>& shape, Point point,
                                    std::int64_t layer) {
    const auto fail = [&](const std::string& what) {
      const std::string expected = py::str(py::tuple(py::cast(shape)));
      throw std::invalid_argument(cat("the hook at ", point_name(point, layer), " returned ", what,
                                      ", expected None or an array of shape ", expected));
    };
    const py::array array = as_array(result);
    if (!array || !is_number(array.dtype())) {
      fail(array ? "an array of dtype " + std::string(py::str(array.dtype())) : "a " + type_name(result));
    }
    if (array.ndim() != static_cast<py::ssize_t>(shape.size()) ||
        !std::equal(shape.begin(), shape.end(), array.shape())) {
      fail("an array of shape " + std::string(py::str(array.attr("shape"))));
    }
    return py::array_t<float, py::array::c_style | py::array::forcecast>(array);
  }

  // A NumPy array of what was returned; none if it is not one of numbers. A tensor of PyTorch's that NumPy cannot show
  // (bfloat16, on another device, with a gradient) is brought to float32 by its own methods.
  static py::array as_array(const py::object& result) {
    py::array array = py::array::ensure(result);
    if (array && array.dtype().kind() != 'O') return array;
    if (!py::hasattr(result, "detach") || !py::hasattr(result, "float") || !py::hasattr(result, "cpu")) return array;
    return py::array::ensure(result.attr("detach")().attr("float")().attr("cpu")());
  }

  // bfloat16 and the eight-bit floats of ml_dtypes are of kind V to NumPy, and can be cast.
  static bool is_number(const py::dtype& dtype) {
    const std::string name = py::str(dtype.attr("name"));
    return std::string("fiub").find(dtype.kind()) != std::string::npos || name.starts_with("bfloat") ||
           name.starts_with("float");
  }

  py::function function_;
  py::list sessions_;
  bool replaces_;
};

// kind, and values [positions, heads, neurons] for an address.
std::shared_ptr<Intervention> make_intervention(const std::string& change, Ints<"Intervention", "heads"> heads,
                                                Ints<"Intervention", "positions"> positions,
                                                Ints<"Intervention", "neurons"> neurons,
                                                const py::array_t<double, py::array::c_style>& values) {
  using Change = Intervention::Change;
  const std::map<std::string, Change> changes = {{"set", Change::set},
                                                 {"scale", Change::scale},
                                                 {"add", Change::add},
                                                 {"project_out", Change::project_out},
                                                 {"mask", Change::mask}};
  const auto found = changes.find(change);
  LLAMA2CPP_CHECK(found != changes.end() && values.ndim() == 3, "there is no intervention '", change, "' with ",
                  values.ndim(), " axes of values");
  return std::make_shared<Intervention>(
      found->second,
      Intervention::Address{std::move(heads.values), std::move(positions.values), std::move(neurons.values)},
      Intervention::Values{std::vector<double>(values.data(), values.data() + values.size()), values.shape(0),
                           values.shape(1), values.shape(2)});
}

}  // namespace

std::vector<Place> places_of(const PlaceList& list, const Config& config) {
  std::vector<Place> places;
  for (const auto& [point, layer] : list) places.push_back(checked_place(point, layer, config));
  return places;
}

py::list run_with_cache(const Model& model, const py::sequence& rows, const PlaceList& places,
                        const std::optional<std::vector<Ints<"run_with_cache", "positions">>>& positions,
                        std::optional<Int<"run_with_cache", "stop_at_layer">> stop_at_layer, const py::object& call,
                        std::optional<Int<"run_with_cache", "start_at_layer">> start_at_layer,
                        const std::optional<FloatRows>& residual, Flag<"run_with_cache", "logits"> logits,
                        Flag<"run_with_cache", "halves"> halves) {
  std::vector<Session*> sessions;
  std::vector<std::vector<std::int32_t>> ids;
  for (const py::handle row : rows) {
    const auto [session, tokens] = row.cast<std::pair<Session*, py::object>>();
    sessions.push_back(session);
    ids.push_back(to_ids(tokens));
  }
  const Hooks hooks = call.is_none() ? Hooks(model.config(), model.backend()) : CallHooks::of(call, model);
  const std::vector<Place> wanted = places_of(places, model.config());
  CachedRunOptions options;
  for (std::size_t i = 0; positions && i < positions->size(); ++i) options.positions.push_back((*positions)[i].values);
  options.start_at_layer = start_at_layer;
  options.stop_at_layer = stop_at_layer;
  if (residual) options.residual = {residual->data(), static_cast<std::size_t>(residual->size())};
  options.logits = logits;
  options.halves = halves;
  std::vector<CachedRun> done;
  {
    const ReleasedGil released;
    done = llama2cpp::run_with_cache(model, sessions, ids, wanted, options, hooks, Poll(model.backend()));
  }
  py::list runs;
  const auto sequences = static_cast<py::ssize_t>(ids.size() / done.size());
  for (std::size_t i = 0; i < done.size(); ++i) {
    const CachedRun& run = done[i];
    py::dict arrays;
    for (const Capture::Slot& slot : run.slots) {
      const py::str name(point_name(slot.place.point, slot.place.layer));
      const std::vector<py::ssize_t> shape(slot.shape.begin(), slot.shape.end());
      arrays[name] = halves ? half_array(run.activations, slot.begin, shape)
                            : py::array(float_array(run.activations, slot.begin, shape));
    }
    const auto tokens = static_cast<py::ssize_t>(ids[i].size());
    py::object out = py::none();
    if (run.width > 0) out = float_array(run.out, 0, {sequences, tokens, run.width});
    runs.append(py::make_tuple(out, arrays));
  }
  return runs;
}

void register_hooks(py::module_& module) {
  using py::arg;

  module.def(
      "hook_points",
      [](const std::optional<Config>& given) {
        Config every;  // the one that has all points
        every.n_layers = 1;
        every.qk_norm = QkNorm::head;
        every.n_experts = every.n_experts_used = 1;
        every.norm_places = NormPlaces::both;
        const Config& config = given ? *given : every;
        py::list points;
        for (const Place& place : all_places(config)) {
          points.append(
              py::make_tuple(point_name(place.point, place.layer), static_cast<int>(place.point), place.layer));
        }
        return points;
      },
      arg("config") = py::none(),
      "Name, point and layer of every place of a model, in the order of the forward. None: of one layer that has all "
      "that "
      "layers of any model have.");

  module.def(
      "point_shape",
      [](Int<"point_shape", "point", int> point, const Config& config) {
        const PointShape shape = point_shape(checked_place(point, 0, config).point, config);
        return py::make_tuple(shape.heads, shape.width);
      },
      arg("point"), arg("config"), "Heads (0: none) and width (0: as many as there are keys) of a token's activation.");

  py::class_<PlaceSet>(module, "Places", "Some places of a model, as (point, layer).")
      .def(py::init(&place_set), arg("places"), arg("config"));

  py::class_<Intervention, std::shared_ptr<Intervention>>(module, "Intervention",
                                                          "A change of activations; see llama2cpp.interventions.")
      .def(py::init(&make_intervention), arg("change"), arg("heads"), arg("positions"), arg("neurons"), arg("values"));

  py::class_<CallHooks>(module, "CallHooks", "What looks at one call; see llama2cpp.inside.hooks.")
      .def(py::init<std::shared_ptr<Model>, py::list>(), arg("model"), arg("sessions"))
      .def(
          "add_callback",
          [](CallHooks& call, const PlaceSet& places, py::function function,
             std::optional<Int<"add_callback", "sequence", std::size_t>> sequence,
             Flag<"add_callback", "together"> together, Flag<"add_callback", "replaces"> replaces) {
            const auto scope = together ? Hook::Scope::call : Hook::Scope::sequence;
            call.hooks().add(std::make_shared<PythonHook>(std::move(function), call.sessions(), scope, replaces),
                             call.checked(places), sequence);
          },
          arg("places"), arg("function"), arg("sequence") = py::none(), arg("together") = false,
          arg("replaces") = false)
      .def(
          "add_intervention",
          [](CallHooks& call, const PlaceSet& places, std::shared_ptr<Intervention> intervention,
             std::optional<Int<"add_intervention", "sequence", std::size_t>> sequence) {
            call.hooks().add(std::move(intervention), call.checked(places), sequence);
          },
          arg("places"), arg("intervention"), arg("sequence") = py::none())
      .def(
          "add_recorder",
          [](CallHooks& call, std::shared_ptr<Recorder> recorder, std::vector<std::shared_ptr<Track>> tracks) {
            const auto recording = std::make_shared<RecorderHook>(std::move(recorder), std::move(tracks));
            const PlaceSet places = recording->places();
            call.hooks().add(recording, call.checked(places));
          },
          arg("recorder"), arg("tracks"));
}

}  // namespace llama2cpp::bind
