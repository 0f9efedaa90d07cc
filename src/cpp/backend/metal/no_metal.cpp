// What platforms and builds without Metal link.
#include "backend/metal/metal_backend.h"
#include "core/check.h"

namespace llama2cpp {
namespace {

constexpr const char* kReason = "this build does not have it";

}  // namespace

std::shared_ptr<Backend> make_metal_backend() {
  throw std::invalid_argument(cat("backend is 'metal', but ", kReason, "; use 'cpu'"));
}

MetalStatus metal_status() { return {{}, kReason}; }

bool metal_by_itself() { return false; }

}  // namespace llama2cpp
