// They are kept as hooks see them, and put where ops have them.
#include "model/given_activations.h"

#include <algorithm>
#include <memory>

namespace llama2cpp {

// In the order in which ops have heads, so that what looks there sees it; of patterns as hooks see them.
class GivenActivations::Put final : public Hook {
 public:
  Put(const GivenActivations& given, bool as_it_lies) : Hook(Kind::edit), given_(given), as_it_lies_(as_it_lies) {}

  bool as_it_lies() const override { return as_it_lies_; }

  void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) override {
    const Tensor from = given_.at(point, layer, span.sequence);
    const Config& c = given_.config_;
    const std::int64_t floats = activation.rows() * activation.columns();
    if (is_rotary(point) && c.rope_style != RopeStyle::half_split) {
      to_interleaved(from.row(0), activation.row(0), floats / c.head_dim, c.head_dim, c.rotary());
    } else {
      std::copy_n(from.row(0), floats, activation.row(0));
    }
  }

 private:
  const GivenActivations& given_;
  bool as_it_lies_;
};

GivenActivations::GivenActivations(const Config& config, std::int64_t tokens, std::span<const GivenActivation> given)
    : config_(config), tokens_(tokens), values_(static_cast<std::size_t>(config.n_layers * kPoints)) {
  for (const auto& [place, values] : given) {
    values_[static_cast<std::size_t>(place.layer * kPoints) + static_cast<std::size_t>(place.point)] = values;
    any_ = true;
    for (const Point norm :
         {Point::ln1_scale, Point::ln1_normalized, Point::ln2_scale, Point::ln2_normalized, Point::ln1_post_scale,
          Point::ln1_post_normalized, Point::ln2_post_scale, Point::ln2_post_normalized}) {
      any_norms_ = any_norms_ || place.point == norm;
    }
  }
}

Tensor GivenActivations::at(Point point, std::int64_t layer, std::size_t sequence) const {
  const float* const values = find(point, layer);
  if (values == nullptr) return {};
  const PointShape shape = point_shape(point, config_);
  const std::int64_t before = static_cast<std::int64_t>(sequence) * tokens_;
  if (is_pattern(point)) {
    return {const_cast<float*>(values) + before * shape.heads * tokens_, {shape.heads, tokens_, tokens_}};
  }
  const std::int64_t width = std::max<std::int64_t>(shape.heads, 1) * shape.width;
  return {const_cast<float*>(values) + before * width, {tokens_, width}};
}

void GivenActivations::add_to(Hooks& hooks) const {
  if (!any_) return;
  PlaceSet rows(config_.n_layers);
  PlaceSet patterns(config_.n_layers);
  for (std::int64_t layer = 0; layer < config_.n_layers; ++layer) {
    for (int p = 0; p < kPoints; ++p) {
      const auto point = static_cast<Point>(p);
      if (has(point, layer)) (is_pattern(point) ? patterns : rows).add({point, layer});
    }
  }
  hooks.add(std::make_shared<Put>(*this, true), rows);
  hooks.add(std::make_shared<Put>(*this, false), patterns);
}

}  // namespace llama2cpp
