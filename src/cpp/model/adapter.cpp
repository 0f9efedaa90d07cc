#include "model/adapter.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "format/f32.h"
#include "io/checkpoint.h"
#include "model/fingerprint.h"

namespace llama2cpp {
namespace {

// Floats [rows, cols] in memory of the backend's.
Weight copied(Backend& backend, const std::string& name, std::span<const float> values, std::int64_t rows,
              std::int64_t cols) {
  Weight weight;
  weight.name = name;
  weight.format = &kF32;
  weight.rows = rows;
  weight.cols = cols;
  Plane& plane = weight.planes[0];
  plane.bytes = values.size_bytes();
  plane.owner = backend.alloc(plane.bytes);
  std::memcpy(plane.owner.data(), values.data(), plane.bytes);
  plane.data = plane.owner.data();
  plane.row_bytes = cols * static_cast<std::int64_t>(sizeof(float));
  return weight;
}

// rows * cols, which a caller's numbers may be too large for.
std::size_t size_of(std::int64_t rows, std::int64_t cols) {
  return checked_mul(static_cast<std::size_t>(rows), static_cast<std::size_t>(cols), "an adapter's matrix");
}

void check(const Model& model, const LowRankPart& part) {
  const Config& c = model.config();
  const std::string reason = why_no_low_rank(c, part.part);
  LLAMA2CPP_CHECK(reason.empty(), facts(part.part).name, " ", reason);
  LLAMA2CPP_CHECK(part.layer >= 0 && part.layer < c.n_layers, "layer is ", part.layer, ", expected 0 to ",
                  c.n_layers - 1);
  const std::string name = weight_name(Naming::meta, part.part, part.layer);
  const auto [rows, cols] = part_shape(c, part.part);
  LLAMA2CPP_CHECK(part.rank >= 1, "the rank of '", name, "' is ", part.rank, ", expected 1 or more");
  LLAMA2CPP_CHECK(part.a.size() == size_of(part.rank, cols) && part.b.size() == size_of(rows, part.rank),
                  "the factors of '", name, "' have ", part.a.size(), " and ", part.b.size(), " numbers, expected [",
                  part.rank, ", ", cols, "] and [", rows, ", ", part.rank, "]");
  const auto finite = [](float x) { return std::isfinite(x); };
  LLAMA2CPP_CHECK(std::isfinite(part.scale), "the scale of '", name, "' is not finite");
  LLAMA2CPP_CHECK(
      std::all_of(part.a.begin(), part.a.end(), finite) && std::all_of(part.b.begin(), part.b.end(), finite),
      "the factors of '", name, "' have numbers that are not finite");
}

}  // namespace

std::string why_no_low_rank(const Config& config, Part part) {
  const PartFacts& row = facts(part);
  if (of_experts(part) || (config.n_experts > 0 && of_dense_mlp(part))) {
    return "is a part of experts, beside which adapters are not computed";
  }
  if (row.scope == Scope::model) return "belongs to no layer, and adapters are computed beside matrices of layers only";
  if (row.kind != PartKind::matrix) return "is no matrix";
  if (!is_needed(config, part).value_or(true)) return "is not in this model";
  return {};
}

Adapter::Adapter(std::shared_ptr<const Model> model, std::span<const LowRankPart> parts, FunctionRef<void()> poll)
    : model_(std::move(model)) {
  Backend& backend = model_->backend();
  LLAMA2CPP_CHECK(backend.takes_adapters(), "the ", backend.name(),
                  " backend does not compute adapters; load the model with backend='cpu'");
  LLAMA2CPP_CHECK(!parts.empty(), "the adapter has no factors of any matrix");
  places_.assign(static_cast<std::size_t>(model_->config().n_layers) * std::size(kParts), -1);
  for (const LowRankPart& part : parts) {
    check(*model_, part);
    std::int32_t& place = places_[place_of(part.part, part.layer)];
    LLAMA2CPP_CHECK(place < 0, "there are factors of '", weight_name(Naming::meta, part.part, part.layer), "' twice");
    place = 0;
  }
  fingerprint_ = llama2cpp::fingerprint(parts);
  factors_.reserve(parts.size());
  for (const LowRankPart& part : parts) {
    const auto [rows, cols] = part_shape(model_->config(), part.part);
    const std::string name = weight_name(Naming::meta, part.part, part.layer);
    places_[place_of(part.part, part.layer)] = static_cast<std::int32_t>(factors_.size());
    factors_.push_back({copied(backend, cat(name, ".lora_a"), part.a, part.rank, cols),
                        copied(backend, cat(name, ".lora_b"), part.b, rows, part.rank), part.scale});
    largest_rank_ = std::max(largest_rank_, part.rank);
    bytes_ += part.a.size_bytes() + part.b.size_bytes();
  }
  if (!model_->packed()) return;
  std::vector<Weight*> weights;
  for (LowRank& factors : factors_) {
    weights.push_back(&factors.a);
    weights.push_back(&factors.b);
  }
  const Backend::Lease lease(backend, poll);
  backend.pack(weights);
}

}  // namespace llama2cpp
