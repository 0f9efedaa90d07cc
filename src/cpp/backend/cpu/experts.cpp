// Routed experts on the CPU. A pass's places are grouped by expert: each expert that is wanted has one call of matmul, with
// the rows that go to it, so its weights are read once; all calls' panels are shared out together, so threads wait for each
// other no more often than in an MLP without experts.
//
//   experts [T, k]       -> places in groups, each expert's in ascending order
//   x, by group          -> tiles, as in matmul.cpp
//   results [T * k, rows]   each worker takes what its panels give to the rows where it belongs
#include "backend/cpu/experts.h"

#include <algorithm>
#include <cmath>

#include "backend/cpu/cpu_backend.h"
#include "backend/op_checks.h"

namespace llama2cpp {
namespace {

// NaN is above all numbers, so that it is seen in what comes out.
bool is_above(float a, float b) { return a > b || (std::isnan(a) && !std::isnan(b)); }

// The k largest of n scores, the lower first of equal ones; ascending.
void choose(const float* scores, std::int64_t n, std::int32_t* ids, std::int64_t k) {
  for (std::int64_t j = 0; j < k; ++j) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < n; ++e) {
      if (best >= 0 && !is_above(scores[e], scores[best])) continue;
      if (std::find(ids, ids + j, e) == ids + j) best = e;
    }
    ids[j] = static_cast<std::int32_t>(best);
  }
  std::sort(ids, ids + k);
}

// The part of a call's panels that begins where `cost` of all has been done before. cost: of all calls before this one.
std::int64_t panels_before(const ExpertCall& one, std::int64_t cost) {
  return std::clamp<std::int64_t>((cost - one.cost_before) / one.cost_of_panel, 0, one.call.all_panels);
}

}  // namespace

void CpuBackend::route(const Tensor& scores, const Routing& routing, const Tensor& experts, const Tensor& weights) {
  op_checks::route(scores, experts, weights);
  const std::int64_t n = scores.columns();
  const std::int64_t k = experts.columns();
  reserve_scratch(n * static_cast<std::int64_t>(sizeof(float)));
  region(scores.rows() > 1 ? scores.rows() * n * k : 0, [&](int worker, int workers) {
    auto* const all = reinterpret_cast<float*>(scratch(worker));
    const Range mine = share(scores.rows(), worker, workers);
    for (std::int64_t t = mine.begin; t < mine.end; ++t) {
      std::int32_t* const ids = experts.integers(t);
      float* const w = weights.row(t);
      choose(scores.row(t), n, ids, k);
      if (routing.order == RouterOrder::topk_softmax) {
        for (std::int64_t j = 0; j < k; ++j) all[j] = scores.row(t)[ids[j]];
        kernels_.softmax(all, nullptr, w, k);
      } else {
        kernels_.softmax(scores.row(t), nullptr, all, n);
        float sum = 0.0F;
        for (std::int64_t j = 0; j < k; ++j) sum += w[j] = all[ids[j]];
        for (std::int64_t j = 0; routing.renormalise && j < k; ++j) w[j] /= sum;
      }
      for (std::int64_t j = 0; routing.scale != 1.0F && j < k; ++j) w[j] *= routing.scale;
    }
  });
}

// A call for each expert that is wanted; or one for all of them, where they have one row.
void ExpertCalls::group(const KernelTable& kernels, std::span<const ExpertWeights> weights, const Tensor& x,
                        const Tensor& experts, std::span<const Tensor> results, const Norm& norm) {
  const auto k = static_cast<std::size_t>(experts.columns());
  const auto n_places = static_cast<std::size_t>(experts.rows()) * k;
  const std::int64_t per_row = x.rows() == experts.rows() ? experts.columns() : 1;
  const std::size_t n = weights.size();
  all = {};
  calls.clear();
  matrices.clear();
  outs.clear();
  places.resize(n_places);
  const auto expert_of = [&](std::size_t place) {
    return static_cast<std::size_t>(experts.integers(static_cast<std::int64_t>(place / k))[place % k]);
  };
  // Where each expert's places begin: counted, and filled in order.
  begins.assign(weights[0].size() + 1, 0);
  for (std::size_t p = 0; p < n_places; ++p) ++begins[expert_of(p) + 1];
  for (std::size_t e = 0; e < weights[0].size(); ++e) begins[e + 1] += begins[e];
  next.assign(begins.begin(), begins.end() - 1);
  for (std::size_t p = 0; p < n_places; ++p) places[next[expert_of(p)]++] = static_cast<std::int32_t>(p);

  // The lists that calls look into are whole before the first call.
  const bool together = x.rows() == 1;
  std::size_t width = 0;
  for (const Tensor& result : results) width += static_cast<std::size_t>(result.columns());
  if (sums.size() < n_places * width * sizeof(float)) sums = Buffer::heap(n_places * width * sizeof(float));
  auto* memory = reinterpret_cast<float*>(sums.data());
  for (std::size_t e = 0; e < weights[0].size(); ++e) {
    const auto count = static_cast<std::int64_t>(begins[e + 1] - begins[e]);
    for (std::size_t i = 0; count > 0 && i < n; ++i) {
      op_checks::expert_weight(weights[i][e], x, results[i]);
      matrices.push_back(&weights[i][e]);
      if (count == 1) {
        outs.push_back(results[i].slice(places[begins[e]], 1));
      } else {
        outs.emplace_back(memory, std::initializer_list<std::int64_t>{count, results[i].columns()});
        memory += count * results[i].columns();
      }
    }
  }
  const std::span<const Weight* const> all_matrices(matrices);
  const std::span<const Tensor> all_outs(outs);
  const std::span<const std::int32_t> all_places(places);
  if (together) {
    add({kernels, all_matrices, x, all_outs, norm});
    return;
  }
  std::size_t at = 0;
  for (std::size_t e = 0; e < weights[0].size(); ++e) {
    const std::size_t count = begins[e + 1] - begins[e];
    if (count == 0) continue;
    add({kernels,
         all_matrices.subspan(at, n),
         x,
         all_outs.subspan(at, n),
         norm,
         {all_places.subspan(begins[e], count), per_row, count > 1 ? results : std::span<const Tensor>{}}});
    at += n;
  }
}

void ExpertCalls::add(const MatmulCall& call) {
  // Reading a panel costs about as much as a few tokens' products with it.
  constexpr std::int64_t kReading = 4;
  const ExpertCall one{call, all.cost, call.tiles.tokens + kReading, all.tiles, all.input_bytes};
  all.cost += call.all_panels * one.cost_of_panel;
  all.tiles += call.lone() ? 0 : call.tiles.count;
  all.input_bytes += call.lone() ? 0 : call.forms.bytes();
  all.worker_bytes = std::max(all.worker_bytes, call.worker_bytes());
  all.products += call.all_panels * call.tiles.tokens;
  calls.push_back(one);
}

void CpuBackend::matmul_experts(std::span<const ExpertWeights> weights, const Tensor& x, const Tensor& experts,
                                std::span<const Tensor> outs, const Norm& norm) {
  op_checks::matmul_experts(weights, x, experts, outs, norm);
  if (experts.rows() == 0) return;
  if (!expert_calls_) expert_calls_ = std::make_shared<ExpertCalls>();
  ExpertCalls& grouped = *expert_calls_;
  grouped.group(kernels_, weights, x, experts, outs, norm);
  check_columns(grouped.matrices);
  const ExpertCalls::Sums& all = grouped.all;
  reserve_scratch(all.worker_bytes);
  if (all.tiles > 0) {
    const auto bytes = static_cast<std::size_t>(all.input_bytes);
    if (tiles_.size() < bytes) tiles_ = Buffer::heap(bytes);
    region(outs[0].rows() * x.columns(), [&](int worker, int workers) {
      const Range mine = share(all.tiles, worker, workers);
      for (const ExpertCall& one : grouped.calls) {
        if (one.call.lone()) continue;
        const Range part{std::max(mine.begin - one.tiles_before, std::int64_t{0}),
                         std::min(mine.end - one.tiles_before, one.call.tiles.count)};
        if (part.begin >= part.end) continue;
        Arena arena(scratch(worker));
        Inputs inputs = one.call.forms.at(tiles_.data() + one.memory_before);
        one.call.lay_out(part, inputs, one.call.carve(arena));
      }
    });
  }
  const bool integers = grouped.matrices[0]->int8_input;
  region(all.products * x.columns() / (integers ? 4 : 1), [&](int worker, int workers) {
    const Range mine = share(all.cost, worker, workers);
    for (const ExpertCall& one : grouped.calls) {
      const Range part{panels_before(one, mine.begin), panels_before(one, mine.end)};
      if (part.begin >= part.end) continue;
      Arena arena(scratch(worker));
      const WorkerMemory memory = one.call.carve(arena);
      Inputs inputs = one.call.forms.at(one.call.lone() ? memory.lone : tiles_.data() + one.memory_before);
      if (one.call.lone()) one.call.lay_out({0, 1}, inputs, memory);
      one.call.multiply(part, inputs, memory);
    }
  });
}

void CpuBackend::add_expert_bias(const Tensor& x, const Tensor& biases, const Tensor& experts) {
  op_checks::add_expert_bias(x, biases, experts);
  const std::int64_t n = x.columns();
  const std::int64_t k = experts.columns();
  each_row(x.rows(), n / 8,
           [&](std::int64_t p) { kernels_.add(x.row(p), biases.row(experts.integers(p / k)[p % k]), x.row(p), n); });
}

void CpuBackend::mix_experts(const Tensor& x, const Tensor& weights, const Tensor& out) {
  op_checks::mix_experts(x, weights, out);
  const std::int64_t n = x.columns();
  const std::int64_t k = weights.columns();
  reserve_scratch(n * static_cast<std::int64_t>(sizeof(float)));
  region(out.rows() > 1 ? out.rows() * k * n / 4 : 0, [&](int worker, int workers) {
    auto* const product = reinterpret_cast<float*>(scratch(worker));
    const Range mine = share(out.rows(), worker, workers);
    for (std::int64_t t = mine.begin; t < mine.end; ++t) {
      kernels_.scale(x.row(t * k), weights.row(t)[0], nullptr, out.row(t), n);
      for (std::int64_t j = 1; j < k; ++j) {
        kernels_.scale(x.row(t * k + j), weights.row(t)[j], nullptr, product, n);
        kernels_.add(out.row(t), product, out.row(t), n);
      }
    }
  });
}

}  // namespace llama2cpp
