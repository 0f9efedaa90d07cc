// What looks at one call: made for it in Python, from the hooks that are active then.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "core/check.h"
#include "model/hooks.h"
#include "model/model.h"

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

  // What run() takes: these hooks, or none.
  static Hooks of(const CallHooks* call, const Model& model) {
    if (call == nullptr) return {};
    LLAMA2CPP_CHECK(call->model_.get() == &model, "the hooks were made for another model");
    return call->hooks_;
  }

 private:
  std::shared_ptr<Model> model_;
  py::list sessions_;
  Hooks hooks_;
};

}  // namespace llama2cpp::bind
