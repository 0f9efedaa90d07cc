// What going back through a layer needs of its forward, beside what the forward leaves in its buffers.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "core/buffer.h"
#include "model/layer_plan.h"
#include "observe/hooks.h"

namespace llama2cpp {

// A hook that keeps some points of a layer as they lie in memory, until the next layer is run.
class LayerTape final : public Hook {
 public:
  // Of sequences of `tokens` at most.
  LayerTape(const Config& config, Backend& backend, std::int64_t tokens);
  // One that keeps norms alone.
  static std::shared_ptr<LayerTape> of_norms(const Config& config, Backend& backend, std::int64_t tokens);

  PlaceSet places() const;
  bool as_it_lies() const override { return true; }
  void at(Point point, std::int64_t layer, const Tensor& activation, const HookSpan& span) override;

  // [T, ...] of the layer that was run last.
  const Tensor& operator[](Point point) const { return kept_[static_cast<std::size_t>(point)]; }

  // Bytes of one that is for so many tokens.
  static double bytes(const Config& config, std::int64_t tokens);

 private:
  LayerTape(const Config& config, Backend& backend, std::int64_t tokens, std::vector<Point> points);

  const Config& config_;
  Backend& backend_;
  std::vector<Point> points_;
  Buffer memory_;
  std::array<Tensor, kPoints> kept_;
};

}  // namespace llama2cpp
