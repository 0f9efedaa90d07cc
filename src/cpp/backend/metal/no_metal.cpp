// What platforms and builds without Metal link.
#include "backend/metal/metal_backend.h"
#include "core/check.h"

namespace llama2cpp {

std::shared_ptr<Backend> make_metal_backend() {
  throw std::invalid_argument("backend is 'metal', which this build does not have; use 'cpu'");
}

}  // namespace llama2cpp
