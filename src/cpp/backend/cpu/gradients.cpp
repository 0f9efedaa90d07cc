// The small gradient ops. Sums along a vector are a query with a key (reference.cpp); the rest is rounded operation by
// operation, the same on every platform.
#include "backend/cpu/cpu_backend.h"
#include "backend/gradient_checks.h"

namespace llama2cpp {

float CpuBackend::dot(const float* a, const float* b, std::int64_t n) const {
  float sum = 0.0F;
  ScoresOf<float> call{.queries = 1, .q = {a}, .keys = b, .n = 1, .head_dim = n, .root = 1.0F, .out = {&sum}};
  kernels_.scores_f32(call);
  return sum;
}

void CpuBackend::norm_scale_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale,
                                     const Tensor& dscale) {
  op_checks::norm_scale_gradient(d, normalized, scale, dscale);
  each_row(d.rows(), d.columns() / 4,
           [&](std::int64_t t) { *dscale.row(t) = -dot(d.row(t), normalized.row(t), d.columns()) / *scale.row(t); });
}

void CpuBackend::norm_gradient(const Tensor& d, const Tensor& normalized, const Tensor& scale, const Tensor& dscale) {
  op_checks::norm_gradient(d, normalized, scale, dscale);
  const std::int64_t n = d.columns();
  each_row(d.rows(), n / 4, [&](std::int64_t t) {
    float* const to = d.row(t);
    const float* const x = normalized.row(t);
    const float factor = 1.0F / *scale.row(t);
    const float along = *dscale.row(t) / static_cast<float>(n);
    for (std::int64_t i = 0; i < n; ++i) to[i] = to[i] * factor + x[i] * along;
  });
}

void CpuBackend::gated_gradient(Activation activation, const Tensor& gate, const Tensor& up, const Tensor& d,
                                const Tensor& dup) {
  op_checks::gated_gradient(gate, up, d, dup);
  each_piece(d.rows(), d.columns(), [&](std::int64_t t, std::int64_t begin, std::int64_t n) {
    kernels_.gated_gradient(activation, gate.row(t) + begin, up.row(t) + begin, d.row(t) + begin, dup.row(t) + begin,
                            n);
  });
}

void CpuBackend::activate_gradient(Activation activation, const Tensor& x, const Tensor& d) {
  op_checks::activate_gradient(activation, x, d);
  each_piece(d.rows(), d.columns(), [&](std::int64_t t, std::int64_t begin, std::int64_t n) {
    kernels_.gated_gradient(activation, x.row(t) + begin, nullptr, d.row(t) + begin, nullptr, n);
  });
}

void CpuBackend::soft_cap_gradient(const Tensor& y, float cap, const Tensor& d) {
  op_checks::soft_cap_gradient(y, cap, d);
  each_piece(d.rows(), d.columns(), [&](std::int64_t t, std::int64_t begin, std::int64_t n) {
    back_through_cap(y.row(t) + begin, cap, d.row(t) + begin, n);
  });
}

}  // namespace llama2cpp
