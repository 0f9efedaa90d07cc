// Shapes of gradients: each is that of what it is the gradient of.
#include "backend/gradient_checks.h"

#include <initializer_list>
#include <utility>

#include "backend/op_checks.h"
#include "core/check.h"

namespace llama2cpp::op_checks {
namespace {

using Named = std::pair<const char*, const Tensor&>;

void need_shape(const char* op, const Named& x, const Named& y) {
  LLAMA2CPP_CHECK(x.second.rows() == y.second.rows() && x.second.columns() == y.second.columns(), "[", op, "] ",
                  x.first, " is ", shape_text(x.second), " but ", y.first, " is ", shape_text(y.second));
}

// Of dense rows, or of the same columns of wider ones.
bool apart(const Tensor& x, const Tensor& y) {
  const auto begin = [](const Tensor& t) { return static_cast<const std::byte*>(t.data); };
  const auto end = [&](const Tensor& t) {
    return t.rows() == 0 ? begin(t)
                         : begin(t) + (t.rows() - 1) * t.row_stride * size_of(t.dtype) + bytes_of(t.dtype, t.columns());
  };
  return end(x) <= begin(y) || end(y) <= begin(x);
}

void need_apart(const char* op, const Named& out, std::initializer_list<Named> others) {
  for (const Named& other : others) {
    LLAMA2CPP_CHECK(!other.second || apart(out.second, other.second), "[", op, "] ", out.first, " ",
                    shape_text(out.second), " overlaps ", other.first, " ", shape_text(other.second),
                    ", expected memory of its own");
  }
}

void need_scale(const char* op, const Named& x, const Named& scale) {
  LLAMA2CPP_CHECK(scale.second.rows() == x.second.rows() && scale.second.columns() == 1, "[", op, "] ", x.first, " is ",
                  shape_text(x.second), " but ", scale.first, " is ", shape_text(scale.second));
}

}  // namespace

void matmul_transposed(std::span<const Weight* const> weights, std::span<const Tensor> dys, const Tensor& out) {
  const char* const op = "matmul_transposed";
  LLAMA2CPP_CHECK(weights.size() == dys.size() && !weights.empty(), "[", op, "] ", weights.size(), " weights but ",
                  dys.size(), " dys");
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Weight& w = *weights[i];
    LLAMA2CPP_CHECK(dys[i].columns() == w.rows, "[", op, "] w is ", shape_text(w), " but dy is ", shape_text(dys[i]));
    LLAMA2CPP_CHECK(out.rows() == dys[i].rows() && out.columns() == w.cols, "[", op, "] w is ", shape_text(w),
                    " and dy is ", shape_text(dys[i]), " but out is ", shape_text(out));
    LLAMA2CPP_CHECK(w.format->group <= 1 || w.cols % w.format->group == 0, "[", op, "] w is ", shape_text(w),
                    ", and groups of ", w.format->group, " (", w.format->name, ") do not fill its rows");
    need_apart(op, {"out", out}, {{"dy", dys[i]}});
  }
}

void matmul_experts_transposed(std::span<const ExpertWeights> weights, std::span<const Tensor> dys,
                               const Tensor& experts, const Tensor& out) {
  const char* const op = "matmul_experts_transposed";
  LLAMA2CPP_CHECK(weights.size() == dys.size() && !weights.empty(), "[", op, "] ", weights.size(),
                  " weights of experts but ", dys.size(), " dys");
  const std::size_t n_experts = weights[0].size();
  need_experts(op, experts, static_cast<std::int64_t>(n_experts));
  const std::int64_t places = experts.rows() * experts.columns();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    LLAMA2CPP_CHECK(weights[i].size() == n_experts, "[", op, "] there are ", weights[i].size(), " experts of weight ",
                    i, ", expected ", n_experts);
    LLAMA2CPP_CHECK(dys[i].rows() == places && out.rows() == places, "[", op, "] dy is ", shape_text(dys[i]),
                    " and out is ", shape_text(out), ", expected ", places, " rows");
    need_apart(op, {"out", out}, {{"dy", dys[i]}});
  }
}

void mix_experts_gradient(const Tensor& d, const Tensor& x, const Tensor& weights, const Tensor& dx,
                          const Tensor& dweights) {
  const char* const op = "mix_experts_gradient";
  LLAMA2CPP_CHECK(x.rows() == d.rows() * weights.columns() && x.columns() == d.columns() && weights.rows() == d.rows(),
                  "[", op, "] d is ", shape_text(d), " and weights are ", shape_text(weights), " but x is ",
                  shape_text(x));
  need_shape(op, {"x", x}, {"dx", dx});
  need_shape(op, {"weights", weights}, {"dweights", dweights});
  need_apart(op, {"dx", dx}, {{"d", d}, {"x", x}, {"weights", weights}});
  need_apart(op, {"dweights", dweights}, {{"d", d}, {"x", x}, {"weights", weights}, {"dx", dx}});
}

void route_gradient(const Tensor& scores, const Tensor& experts, const Tensor& dweights, const Tensor& dscores) {
  const char* const op = "route_gradient";
  need_experts(op, experts, scores.columns());
  need_shape(op, {"experts", experts}, {"dweights", dweights});
  need_shape(op, {"scores", scores}, {"dscores", dscores});
  LLAMA2CPP_CHECK(experts.rows() == scores.rows(), "[", op, "] scores are ", shape_text(scores), " but experts are ",
                  shape_text(experts));
  need_apart(op, {"dscores", dscores}, {{"scores", scores}, {"experts", experts}, {"dweights", dweights}});
}

void norm_scale_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale, const Tensor& dscale) {
  const char* const op = "norm_scale_gradient";
  need_shape(op, {"d", d}, {"normalized", normalized});
  need_scale(op, {"d", d}, {"scale", scale});
  need_scale(op, {"d", d}, {"dscale", dscale});
  need_apart(op, {"dscale", dscale}, {{"d", d}, {"normalized", normalized}, {"scale", scale}});
}

void norm_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale, const Tensor& dscale) {
  const char* const op = "norm_gradient";
  need_shape(op, {"d", d}, {"normalized", normalized});
  need_scale(op, {"d", d}, {"scale", scale});
  need_scale(op, {"d", d}, {"dscale", dscale});
  need_apart(op, {"d", d}, {{"normalized", normalized}, {"scale", scale}, {"dscale", dscale}});
}

void gated_gradient(const Tensor& gate, const Tensor& up, const Tensor& d, const Tensor& dup) {
  const char* const op = "gated_gradient";
  need_shape(op, {"gate", gate}, {"up", up});
  need_shape(op, {"gate", gate}, {"d", d});
  need_shape(op, {"gate", gate}, {"dup", dup});
  need_apart(op, {"d", d}, {{"gate", gate}, {"up", up}});
  need_apart(op, {"dup", dup}, {{"gate", gate}, {"up", up}, {"d", d}});
}

void activate_gradient(Activation activation, const Tensor& x, const Tensor& d) {
  LLAMA2CPP_CHECK(activation != Activation::clamped_swiglu,
                  "[activate_gradient] clamped_swiglu is of two numbers: use gated_gradient");
  need_shape("activate_gradient", {"x", x}, {"d", d});
  need_apart("activate_gradient", {"d", d}, {{"x", x}});
}

void soft_cap_gradient(const Tensor& y, float cap, const Tensor& d) {
  LLAMA2CPP_CHECK(cap > 0.0F, "[soft_cap_gradient] the cap is ", cap, ", expected a number above 0");
  need_shape("soft_cap_gradient", {"y", y}, {"d", d});
  need_apart("soft_cap_gradient", {"d", d}, {{"y", y}});
}

void attention_gradient(const Tensor& q, const AttentionSpan& span, const AttentionGradients& g) {
  const char* const op = "attention_gradient";
  LLAMA2CPP_CHECK(span.row == 0 && span.position == 0 && span.count == q.rows(), "[", op, "] q is ", shape_text(q),
                  " but the span has ", span.count, " tokens from position ", span.position,
                  ", expected all of them from 0");
  LLAMA2CPP_CHECK(span.divisor > 0.0F, "[", op, "] the divisor is ", span.divisor, ", expected a number above 0");
  LLAMA2CPP_CHECK(span.keys.rank == 3 && span.values.rank == 3 && span.keys.dtype == span.values.dtype &&
                      span.keys.shape == span.values.shape && span.keys.dim(1) >= span.count,
                  "[", op, "] keys are ", shape_text(span.keys), " and values ", shape_text(span.values), " for ",
                  span.count, " tokens");
  const std::int64_t head_dim = span.keys.columns();
  const std::int64_t kv_dim = span.keys.dim(0) * head_dim;
  LLAMA2CPP_CHECK(q.columns() % kv_dim == 0, "[", op, "] q is ", shape_text(q), " but keys are ",
                  shape_text(span.keys));
  need_shape(op, {"q", q}, {"dz", g.dz});
  need_shape(op, {"q", q}, {"dq", g.dq});
  for (const Named& x : {Named{"dk", g.dk}, Named{"dv", g.dv}}) {
    LLAMA2CPP_CHECK(x.second.rows() == q.rows() && x.second.columns() == kv_dim, "[", op, "] keys are ",
                    shape_text(span.keys), " but ", x.first, " is ", shape_text(x.second));
    need_apart(op, x, {{"q", q}, {"dz", g.dz}, {"dq", g.dq}});
  }
  need_apart(op, {"dq", g.dq}, {{"q", q}, {"dz", g.dz}});
  need_apart(op, {"dk", g.dk}, {{"dv", g.dv}});
  for (const Named& x : {Named{"dpattern", g.dpattern}, Named{"dscores", g.dscores}, Named{"scores", g.scores},
                         Named{"pattern", g.pattern}}) {
    if (!x.second) continue;
    LLAMA2CPP_CHECK(x.second.rank == 3 && x.second.dim(0) == q.columns() / head_dim && x.second.dim(1) == span.count &&
                        x.second.dim(2) == span.count,
                    "[", op, "] ", x.first, " is ", shape_text(x.second), " for ", span.count, " tokens");
  }
}

}  // namespace llama2cpp::op_checks
