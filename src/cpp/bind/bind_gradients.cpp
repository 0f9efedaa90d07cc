// Gradients for Python: Model.gradients of the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/numpy.h"
#include "bind/poll.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "model/gradients.h"

namespace llama2cpp::bind {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

}  // namespace

py::dict gradients(const Model& model, const py::sequence& rows, const py::array& dlogits, const PlaceList& places,
                   const std::optional<Ints<"gradients", "positions">>& positions, const PlaceList& stop,
                   const std::vector<py::array>& stream,
                   const std::vector<std::tuple<int, std::int64_t, py::array>>& given) {
  std::vector<Session*> sessions;
  std::vector<std::vector<std::int32_t>> ids;
  for (const py::handle row : rows) {
    const auto [session, tokens] = row.cast<std::pair<Session*, py::object>>();
    sessions.push_back(session);
    ids.push_back(to_ids(tokens));
  }
  LLAMA2CPP_CHECK(!ids.empty() && !ids[0].empty(), "there are no tokens, expected at least one");
  const auto floats_of = [](const char* name, const py::array& array, py::ssize_t size) {
    LLAMA2CPP_CHECK(Floats::check_(array) && array.size() == size, name, " has ", array.size(), " numbers of dtype ",
                    std::string(py::str(array.dtype())), ", expected ", size, " of float32 in C order");
    return static_cast<const float*>(array.data());
  };
  const Config& c = model.config();
  const auto tokens = static_cast<py::ssize_t>(ids.size() * ids[0].size());
  GradientCall call{.sessions = sessions,
                    .prompts = ids,
                    .dlogits = {floats_of("dlogits", dlogits, tokens * c.vocab_size),
                                static_cast<std::size_t>(tokens * c.vocab_size)},
                    .places = places_of(places, c),
                    .positions = positions ? positions->values : std::vector<std::int64_t>(),
                    .stop = PlaceSet(c.n_layers),
                    .stream = {}};
  for (const Place& place : places_of(stop, c)) call.stop.add(place);
  for (const py::array& x : stream) call.stream.push_back(floats_of("a residual stream", x, tokens * c.dim));
  for (const auto& [point, layer, values] : given) {
    const Place place = checked_place(point, layer, c);
    const PointShape shape = point_shape(place.point, c);
    const std::int64_t width = is_pattern(place.point) ? static_cast<std::int64_t>(ids[0].size()) : shape.width;
    call.given.push_back(
        {place, floats_of("an activation that was changed", values,
                          static_cast<py::ssize_t>(tokens * std::max<std::int64_t>(shape.heads, 1) * width))});
  }
  CachedRun done;
  {
    const ReleasedGil released;
    done = llama2cpp::gradients(model, std::move(call), Poll(model.backend()));
  }
  py::dict arrays;
  for (const Capture::Slot& slot : done.slots) {
    arrays[py::str(point_name(slot.place.point, slot.place.layer))] =
        float_array(done.activations, slot.begin, {slot.shape.begin(), slot.shape.end()});
  }
  return arrays;
}

}  // namespace llama2cpp::bind
