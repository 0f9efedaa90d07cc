// LoRA adapters: products of low rank beside a model's weights. For each matrix W that an adapter has factors of,
// y = W x + scale * B (A x).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "core/function_ref.h"
#include "core/parts.h"
#include "model/model.h"

namespace llama2cpp {

// The factors of one matrix [rows, cols].
struct LowRank {
  Weight a;  // [rank, cols] f32
  Weight b;  // [rows, rank] f32; rows in the order of the model's file
  float scale = 1.0F;

  std::int64_t rank() const { return a.rows; }
};

// The same before a model has them: numbers that lie together.
struct LowRankPart {
  Part part;
  std::int64_t layer = 0;
  std::int64_t rank = 0;
  float scale = 1.0F;
  std::span<const float> a;  // [rank, cols]
  std::span<const float> b;  // [rows, rank]
};

// What an adapter would change and has no place for: "is a part of experts". Empty where it has one.
std::string why_no_low_rank(const Config& config, Part part);

// Immutable once made, so threads and sessions share it.
class Adapter {
 public:
  // Copies the numbers. Throws std::invalid_argument for parts without a place, twice the same, other shapes than the model's,
  // numbers that are not finite, and where the model's backend does not compute beside its weights; OutOfMemoryError. Takes the
  // backend's lease: `poll` as everywhere.
  Adapter(std::shared_ptr<const Model> model, std::span<const LowRankPart> parts, FunctionRef<void()> poll);

  const Model& model() const { return *model_; }
  const std::shared_ptr<const Model>& shared_model() const { return model_; }

  // Whether it can be beside this model's weights: those of the model that it was made for, or of one with the same weights but
  // for some (Model's second constructor).
  bool fits(const Model& model) const { return &model.backend() == &model_->backend(); }

  // Null where it leaves the matrix alone.
  const LowRank* find(Part part, std::int64_t layer) const {
    const std::int32_t at = places_[place_of(part, layer)];
    return at < 0 ? nullptr : &factors_[static_cast<std::size_t>(at)];
  }

  std::int64_t largest_rank() const { return largest_rank_; }
  std::size_t bytes() const { return bytes_; }  // of the factors

  // 32 hexadecimal digits of all that it computes: equal ones give equal bits.
  const std::string& fingerprint() const { return fingerprint_; }

 private:
  static std::size_t place_of(Part part, std::int64_t layer) {
    return static_cast<std::size_t>(layer) * std::size(kParts) + static_cast<std::size_t>(part);
  }

  std::shared_ptr<const Model> model_;
  std::vector<LowRank> factors_;
  std::vector<std::int32_t> places_;  // [n_layers][parts]: which of them; -1: none
  std::int64_t largest_rank_ = 0;
  std::size_t bytes_ = 0;
  std::string fingerprint_;
};

}  // namespace llama2cpp
