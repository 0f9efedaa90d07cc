// What module.cpp calls: one function for each room that Python sees.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bind/integer.h"
#include "bind/numpy.h"

namespace llama2cpp {
struct Config;
class Model;
struct Place;
struct Vocabulary;
}  // namespace llama2cpp

namespace llama2cpp::bind {

namespace py = pybind11;

using PlaceList = std::vector<std::pair<Int<"places", "point", int>, Int<"places", "layer">>>;

// Throws std::invalid_argument for a place that a model of that config does not have.
std::vector<Place> places_of(const PlaceList& list, const Config& config);

void register_errors(py::module_& module);
void register_adapter(py::module_& module);
void register_files(py::module_& module);
void register_config(py::module_& module);
void register_format(py::module_& module);
void register_gptq(py::module_& module);
void register_text(py::module_& module);

// Python warnings (UserWarning) of what a file's tokenizer said that could not be used. `level` as in warnings.warn.
void warn_of(const Vocabulary& vocabulary, int level);

void register_sampler(py::module_& module);
void register_hooks(py::module_& module);
void register_recorder(py::module_& module);
void register_safetensors(py::module_& module);
void register_session(py::module_& module);
void register_model(py::module_& module);
void register_panels(py::module_& module);
void register_parts(py::module_& module);
void register_machine(py::module_& module);

// Last of all: what inspect.signature and help() read.
void tidy_signatures(py::module_& module);

// Model.forward, which lives with the sessions that it feeds; and Model.feed, whose rows are (session, id or ids) or
// (session, ids, array for the logits after each): what else it computes stays in the sessions.
py::list forward_many(const Model& model, const py::sequence& rows, const py::object& hooks,
                      Flag<"Model.forward", "all_logits"> all_logits,
                      std::optional<Int<"Model.forward", "start_at_layer">> start_at_layer,
                      const std::optional<std::vector<FloatRows>>& residuals);
void feed_many(const Model& model, const py::sequence& rows, const py::object& hooks);

// Model.run_with_cache, which lives with the hooks.
py::list run_with_cache(const Model& model, const py::sequence& rows, const PlaceList& places,
                        const std::optional<std::vector<Ints<"run_with_cache", "positions">>>& positions,
                        std::optional<Int<"run_with_cache", "stop_at_layer">> stop_at_layer, const py::object& hooks,
                        std::optional<Int<"run_with_cache", "start_at_layer">> start_at_layer,
                        const std::optional<FloatRows>& residual, Flag<"run_with_cache", "logits"> logits,
                        Flag<"run_with_cache", "halves"> halves);

// Model.gradients: those of the places, by name, as run_with_cache gives activations. stop: places whose gradients go no
// further. stream: the residual stream before each layer and after the last, or nothing.
py::dict gradients(const Model& model, const py::sequence& rows, const py::array& dlogits, const PlaceList& places,
                   const std::optional<Ints<"gradients", "positions">>& positions, const PlaceList& stop,
                   const std::vector<py::array>& stream,
                   const std::vector<std::tuple<int, std::int64_t, py::array>>& given);

}  // namespace llama2cpp::bind
