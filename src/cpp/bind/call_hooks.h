// What looks at one call: made for it in Python, from the hooks that are active then.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/check.h"
#include "model/model.h"
#include "observe/hooks.h"

namespace llama2cpp::bind {

namespace py = pybind11;

class CallHooks {
 public:
  // sessions: the call's, in its order, as Python knows them. They are what a callback gets as hook.session.
  CallHooks(std::shared_ptr<Model> model, py::list sessions)
      : model_(std::move(model)), sessions_(std::move(sessions)), hooks_(model_->config(), model_->backend()) {}

  const Model& model() const { return *model_; }
  const py::list& sessions() const { return sessions_; }
  Hooks& hooks() { return hooks_; }

  // Places were made for a config, and this one may be another.
  const PlaceSet& checked(const PlaceSet& places) const {
    LLAMA2CPP_CHECK(places.n_layers() == model_->config().n_layers, "the places are those of another model");
    return places;
  }

  // What run() takes: these hooks, or none for None. (A pointer as a bound function's argument would be slow for None:
  // pybind11 has Python make an exception first, to see whether another module knows the type.)
  static Hooks of(const py::object& call, const Model& model) {
    if (call.is_none()) return {};
    const auto& hooks = call.cast<const CallHooks&>();
    LLAMA2CPP_CHECK(hooks.model_.get() == &model, "the hooks were made for another model");
    return hooks.hooks_;
  }

 private:
  std::shared_ptr<Model> model_;
  py::list sessions_;
  Hooks hooks_;
};

}  // namespace llama2cpp::bind
