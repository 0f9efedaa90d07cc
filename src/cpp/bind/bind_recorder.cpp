// Recorders for Python; see llama2cpp.inside.recording.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/released_gil.h"
#include "core/check.h"
#include "core/memory_needs.h"
#include "model/model.h"
#include "observe/recorder.h"

namespace llama2cpp::bind {
namespace {

std::shared_ptr<Recorder> make_recorder(const Model& model, const PlaceList& list) {
  const Config& c = model.config();
  std::vector<Place> places;
  for (const auto& [point, layer] : list) {
    LLAMA2CPP_CHECK(point >= 0 && point < kPoints && layer >= 0 && layer < c.n_layers, "there is no point ",
                    point.value, " in layer ", layer.value);
    places.push_back({static_cast<Point>(point.value), layer.value});
  }
  return std::make_shared<Recorder>(c, std::move(places));
}

// Arrays [1, rows, ...] by name, which are parts of one piece of memory, the rows' positions, and all tokens.
py::tuple arrays_of(const Recorder& recorder, const Track& track) {
  const Track::Rows recorded = track.rows();
  const std::span<const Track::Row> rows = recorded.rows;
  std::vector<std::int64_t> begins;
  double floats = 0;
  for (const Place& place : recorder.places()) {
    begins.push_back(static_cast<std::int64_t>(floats));
    double size = 1;
    for (const std::int64_t n : recorder.shape(place, rows)) size *= static_cast<double>(n);
    floats += std::ceil(size / 16) * 16;  // each begins on a cache line
  }
  need_memory(floats * sizeof(float), "a cache of this recording", "", "record fewer names or tokens");

  const Buffer memory = Buffer::heap(static_cast<std::size_t>(floats) * sizeof(float));
  auto* const begin = reinterpret_cast<float*>(memory.data());
  {
    const ReleasedGil released;
    for (std::size_t i = 0; i < begins.size(); ++i) recorder.copy(recorder.places()[i], rows, begin + begins[i]);
  }
  py::dict arrays;
  for (std::size_t i = 0; i < begins.size(); ++i) {
    const Place place = recorder.places()[i];
    std::vector<py::ssize_t> shape = {1};
    for (const std::int64_t n : recorder.shape(place, rows)) shape.push_back(n);
    arrays[py::str(point_name(place.point, place.layer))] = float_array(memory, begins[i], shape);
  }
  py::list positions;
  for (const Track::Row& row : rows) positions.append(row.position);
  return py::make_tuple(arrays, positions, recorded.tokens);
}

}  // namespace

void register_recorder(py::module_& module) {
  using py::arg;

  py::class_<Track, std::shared_ptr<Track>>(module, "Track", "What has been recorded of one session.")
      .def(py::init())
      .def("fork", &Track::fork)
      .def("__len__", &Track::size);

  py::class_<Recorder, std::shared_ptr<Recorder>>(module, "Recorder",
                                                  "Keeps activations of many calls; see llama2cpp.inside.recording.")
      .def(py::init(&make_recorder), arg("model"), arg("places"))
      .def(
          "bytes",
          [](const Recorder& recorder, Int<"Recorder.bytes", "begin"> begin, Int<"Recorder.bytes", "count"> count) {
            return recorder.bytes(begin, count);
          },
          arg("begin"), arg("count"))
      .def("reserve", &Recorder::reserve, arg("bytes"))
      .def_property_readonly("bytes_taken", &Recorder::bytes_taken)
      .def("arrays", &arrays_of, arg("track"));
}

}  // namespace llama2cpp::bind
