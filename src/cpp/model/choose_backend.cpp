#include "model/choose_backend.h"

#include <algorithm>
#include <exception>
#include <vector>

#include "core/check.h"
#include "core/q8_block.h"

namespace llama2cpp {
namespace {

// The matrices that the model's parts are; what else a file has nobody multiplies.
std::vector<const Weight*> matrices_of(const Checkpoint& checkpoint) {
  std::vector<const Weight*> matrices;
  for (const auto& [name, weight] : checkpoint.weights) {
    if (find_part(checkpoint.naming, name) && !is_vector(checkpoint, weight)) matrices.push_back(&weight);
  }
  return matrices;
}

// Whether the options, or the model's own arithmetic, ask for what only the CPU does.
bool asks_for_cpu(const Checkpoint& checkpoint, const ModelOptions& options) {
  return options.activation_dtype == "int8" || options.activation_dtype == "bf16" || options.kv_dtype == "q8_0" ||
         options.pack == "always" || options.threads != 0 ||
         arithmetic_for(checkpoint, options.activation_dtype) == Arithmetic::llama2c;
}

// Whether a backend has kernels for all of a model, and room.
bool suits(const Backend& backend, const Checkpoint& checkpoint) {
  if (checkpoint.config.n_experts > 0 && !backend.routes_experts()) return false;
  const std::vector<const Weight*> matrices = matrices_of(checkpoint);
  std::size_t bytes = 0;
  for (const Weight* weight : matrices) {
    for (const Plane& plane : weight->planes) bytes += plane.bytes;
  }
  return bytes <= backend.memory_left() && std::all_of(matrices.begin(), matrices.end(), [&](const Weight* weight) {
           return backend.refuses(*weight).empty();
         });
}

// Whether such keys and values can be made at all: before anything else is.
void check_kv_dtype(const Config& config, const ModelOptions& options) {
  const std::string& kv = options.kv_dtype;
  LLAMA2CPP_CHECK(kv == "auto" || kv == "f32" || kv == "f16" || kv == "q8_0", "kv_dtype is '", kv,
                  "', expected one of: auto, f32, f16, q8_0");
  if (kv != "q8_0") return;
  LLAMA2CPP_CHECK(config.head_dim % kQ8Numbers == 0, "kv_dtype is 'q8_0', but head_dim is ", config.head_dim,
                  ", expected a multiple of ", kQ8Numbers, "; use 'f16'");
  LLAMA2CPP_CHECK(options.backend != "metal",
                  "kv_dtype is 'q8_0', which runs on the CPU only; use 'f16', or backend='cpu'");
}

}  // namespace

Arithmetic arithmetic_for(const Checkpoint& checkpoint, const std::string& activations) {
  return checkpoint.llama2c_arithmetic && activations != "f32" && activations != "bf16" ? Arithmetic::llama2c
                                                                                        : Arithmetic::contract;
}

std::shared_ptr<Backend> choose_backend(const Checkpoint& checkpoint, const ModelOptions& options) {
  check_kv_dtype(checkpoint.config, options);
  if (options.backend == "auto" && metal_by_itself() && !asks_for_cpu(checkpoint, options)) {
    try {
      auto backend = make_backend("metal", options.threads);
      if (suits(*backend, checkpoint)) return backend;
    } catch (const std::exception&) {
      // There is none, or none that works (metal_status() says why): the CPU can do all of it.
    }
  }
  LLAMA2CPP_CHECK(options.backend != "metal" || options.threads == 0, "threads is ", options.threads,
                  ", but the metal backend computes on the GPU; leave it out, or use backend='cpu'");
  const std::string_view kind = options.backend == "auto" ? "cpu" : std::string_view(options.backend);
  auto backend = make_backend(kind, options.threads, arithmetic_for(checkpoint, options.activation_dtype));
  if (checkpoint.config.n_experts > 0 && !backend->routes_experts()) {
    throw FormatError(cat("the model has experts (n_experts ", checkpoint.config.n_experts, "), which the ",
                          backend->name(), " backend does not compute; use backend='cpu'"));
  }
  for (const Weight* weight : matrices_of(checkpoint)) {
    const std::string reason = backend->refuses(*weight);
    if (!reason.empty()) throw FormatError(cat("tensor '", weight->name, "': ", reason, "; use backend='cpu'"));
  }
  return backend;
}

}  // namespace llama2cpp
