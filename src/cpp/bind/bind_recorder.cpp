// Recorders for Python; see llama2cpp.inside.recording.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "bind/bind.h"
#include "bind/integer.h"
#include "bind/numpy.h"
#include "bind/released_gil.h"
#include "model/model.h"
#include "observe/recorder.h"

namespace llama2cpp::bind {
namespace {

// Arrays [1, rows, ...] by name, which are parts of one piece of memory, the rows' positions, and all tokens.
py::tuple arrays_of(const Recorder& recorder, const Track& track) {
  const Track::Rows recorded = track.rows();
  Recorder::Copies copies;
  {
    const ReleasedGil released;
    copies = recorder.copy_all(recorded.rows);
  }
  py::dict arrays;
  for (const Recorder::Copies::Part& part : copies.parts) {
    std::vector<py::ssize_t> shape = {1};
    shape.insert(shape.end(), part.shape.begin(), part.shape.end());
    arrays[py::str(point_name(part.place.point, part.place.layer))] = float_array(copies.memory, part.begin, shape);
  }
  py::list positions;
  for (const Track::Row& row : recorded.rows) positions.append(row.position);
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
      .def(py::init([](const Model& model, const PlaceList& places) {
             return std::make_shared<Recorder>(model.config(), places_of(places, model.config()));
           }),
           arg("model"), arg("places"))
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
