// Chooses a backend by name. The only file that names the CPU and Metal.
#include "backend/backend.h"

#include <algorithm>

#include "backend/cpu/cpu_backend.h"
#include "backend/metal/metal_backend.h"
#include "core/check.h"
#include "core/half.h"

namespace llama2cpp {

Vector Backend::make_vector(std::int64_t n) {
  Vector vector;
  vector.memory = alloc(static_cast<std::size_t>(n) * sizeof(float));
  vector.view = Tensor(reinterpret_cast<float*>(vector.memory.data()), {n});
  return vector;
}

void Backend::narrow(const float* x, std::uint16_t* out, std::int64_t n) const {
  std::transform(x, x + n, out, float_to_half);
}

std::shared_ptr<Backend> make_backend(std::string_view kind, int threads, Arithmetic arithmetic) {
  if (kind == "cpu") return make_cpu_backend(threads, arithmetic);
  if (kind == "metal") return make_metal_backend();
  throw std::invalid_argument(cat("backend is '", kind, "', expected one of: auto, cpu, metal"));
}

}  // namespace llama2cpp
