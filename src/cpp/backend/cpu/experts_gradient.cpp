// Gradients of the ops on routed experts. The transposed product is that of each expert that is wanted, with the rows that
// went to it: a row's sums do not depend on the others.
#include <algorithm>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/gradient_checks.h"

namespace llama2cpp {

void CpuBackend::matmul_experts_transposed(std::span<const ExpertWeights> weights, std::span<const Tensor> dys,
                                           const Tensor& experts, const Tensor& out) {
  op_checks::matmul_experts_transposed(weights, dys, experts, out);
  const std::int64_t k = experts.columns();
  std::vector<float> memory;  // of one expert's rows: of each dy, and of the result
  std::vector<std::int64_t> places;
  std::vector<Tensor> rows;
  std::vector<const Weight*> own;
  for (std::size_t e = 0; e < weights[0].size(); ++e) {
    places.clear();
    for (std::int64_t p = 0; p < out.rows(); ++p) {
      if (experts.integers(p / k)[p % k] == static_cast<std::int32_t>(e)) places.push_back(p);
    }
    if (places.empty()) continue;
    const auto count = static_cast<std::int64_t>(places.size());
    std::int64_t width = out.columns();
    for (const Tensor& dy : dys) width += dy.columns();
    memory.resize(std::max(memory.size(), static_cast<std::size_t>(count * width)));
    rows.clear();
    own.clear();
    float* at = memory.data();
    for (std::size_t i = 0; i < dys.size(); ++i) {
      own.push_back(&weights[i][e]);
      const Tensor& to = rows.emplace_back(at, std::initializer_list<std::int64_t>{count, dys[i].columns()});
      for (std::size_t r = 0; r < places.size(); ++r) {
        at = std::copy_n(dys[i].row(places[r]), to.columns(), at);
      }
    }
    const Tensor sums(at, {count, out.columns()});
    matmul_transposed(own, rows, sums);
    for (std::size_t r = 0; r < places.size(); ++r) {
      std::copy_n(sums.row(static_cast<std::int64_t>(r)), sums.columns(), out.row(places[r]));
    }
  }
}

void CpuBackend::mix_experts_gradient(const Tensor& d, const Tensor& x, const Tensor& weights, const Tensor& dx,
                                      const Tensor& dweights) {
  op_checks::mix_experts_gradient(d, x, weights, dx, dweights);
  const std::int64_t k = weights.columns();
  each_row(x.rows(), x.columns() / 2, [&](std::int64_t p) {
    const float* const from = d.row(p / k);
    kernels_.scale(from, weights.row(p / k)[p % k], nullptr, dx.row(p), d.columns());
    dweights.row(p / k)[p % k] = dot(from, x.row(p), d.columns());
  });
}

void CpuBackend::route_gradient(const Tensor& scores, const Routing& routing, const Tensor& experts,
                                const Tensor& dweights, const Tensor& dscores) {
  op_checks::route_gradient(scores, experts, dweights, dscores);
  const std::int64_t n = scores.columns();
  const std::int64_t k = experts.columns();
  // Softmax of the chosen ones is what weights are then, however it was computed.
  const bool of_chosen = routing.order == RouterOrder::topk_softmax || routing.renormalise;
  reserve_scratch((n + 2 * k) * static_cast<std::int64_t>(sizeof(float)));
  region(scores.rows() > 1 ? scores.rows() * n * 8 : 0, [&](int worker, int workers) {
    auto* const all = reinterpret_cast<float*>(scratch(worker));
    float* const chosen = all + n;       // [k] scores
    float* const share_of = chosen + k;  // [k] what softmax gives them
    const Range mine = share(scores.rows(), worker, workers);
    for (std::int64_t t = mine.begin; t < mine.end; ++t) {
      const std::int32_t* const ids = experts.integers(t);
      const float* const dw = dweights.row(t);
      float* const to = dscores.row(t);
      if (of_chosen) {
        for (std::int64_t j = 0; j < k; ++j) chosen[j] = scores.row(t)[ids[j]];
        kernels_.softmax(chosen, nullptr, share_of, k);
      } else {
        kernels_.softmax(scores.row(t), nullptr, all, n);
        for (std::int64_t j = 0; j < k; ++j) share_of[j] = all[ids[j]];
      }
      float mean = 0.0F;
      for (std::int64_t j = 0; j < k; ++j) mean += share_of[j] * dw[j];
      for (std::int64_t e = 0; e < n; ++e) to[e] = of_chosen ? 0.0F : all[e] * -mean;
      for (std::int64_t j = 0; j < k; ++j) to[ids[j]] = share_of[j] * (dw[j] - mean);
      for (std::int64_t e = 0; routing.scale != 1.0F && e < n; ++e) to[e] *= routing.scale;
    }
  });
}

}  // namespace llama2cpp
