// The norms of a forward: of the residual stream, of what is added to it, and of queries and keys, each with what hooks see
// of it. RMSNorm, or LayerNorm, as the config says.
#pragma once

#include <cstdint>
#include <span>

#include "model/activations.h"
#include "model/weights.h"
#include "observe/hooks.h"

namespace llama2cpp {

inline const Vector kNone{};

// What a matmul reads: x, and how it normalises it on the way in.
struct Input {
  Tensor x;
  Norm norm = {};
};

// Where hooks see the two halves of a norm.
struct NormPoints {
  Point scale, normalized;
};
inline constexpr NormPoints kLn1{Point::ln1_scale, Point::ln1_normalized};
inline constexpr NormPoints kLn1Post{Point::ln1_post_scale, Point::ln1_post_normalized};
inline constexpr NormPoints kLn2{Point::ln2_scale, Point::ln2_normalized};
inline constexpr NormPoints kLn2Post{Point::ln2_post_scale, Point::ln2_post_normalized};
inline constexpr NormPoints kLnFinal{Point::ln_final_scale, Point::ln_final_normalized};

// A norm's weights, empty where it has none.
struct NormWeights {
  const Vector& gain;
  const Vector& bias = kNone;
};

class Norms {
 public:
  Norms(const Config& config, Backend& backend, Activations& activations, const Hooks& hooks)
      : c_(config), be_(backend), a_(activations), hooks_(hooks) {}

  // In two halves: the divisor, and the product with it, which matmul does on the way in unless a hook looks or there is a
  // bias. What it gives may be x, a.centered or a.normalized.
  Input of(Tensor x, NormWeights weights, NormPoints points, std::int64_t layer, std::span<const HookSpan> spans);

  void in_place(const Tensor& x, NormWeights weights, NormPoints points, std::int64_t layer,
                std::span<const HookSpan> spans);

  // RMSNorm of queries and keys, in place: of each head, or of all heads of a token as one.
  void of_heads(const LayerWeights& weights, std::int64_t layer, std::span<const HookSpan> spans);

 private:
  void norm_rows(const Tensor& x, const Vector& gain);

  const Config& c_;
  Backend& be_;
  Activations& a_;
  const Hooks& hooks_;
};

}  // namespace llama2cpp
