// The ops on routed experts, against plain loops over tokens: each token alone, times each of its experts' weights alone.
// Equal bits, for every instruction set, number of threads and tokens, packed or not: so a token's results do not depend on
// who is with it in the pass.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/isa/select.h"
#include "backend/gradient_ops.h"
#include "format/format.h"
#include "kernel_outputs.h"

namespace {

using kernel_outputs::Bits;
using kernel_outputs::Kind;
using llama2cpp::Backend;
using llama2cpp::CpuBackend;
using llama2cpp::DType;
using llama2cpp::ExpertWeights;
using llama2cpp::Norm;
using llama2cpp::RouterOrder;
using llama2cpp::Routing;
using llama2cpp::Tensor;
using llama2cpp::Weight;

std::vector<std::unique_ptr<CpuBackend>> backends() {
  std::vector<std::unique_ptr<CpuBackend>> all;
  for (const char* isa : {"reference", "scalar", "neon", "avx2", "avx512"}) {
    try {
      all.push_back(std::make_unique<CpuBackend>(all.empty() ? 1 : 3, llama2cpp::select_kernels(isa)));
    } catch (const std::invalid_argument&) {
      continue;  // not on this machine
    }
  }
  return all;
}

// A matrix of random numbers in a format that this project writes.
Weight make_weight(const char* name, std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  const llama2cpp::Format& format = llama2cpp::find_format(name);
  const auto values = kernel_outputs::make(static_cast<std::size_t>(rows * cols), Kind::ordinary, seed);
  Weight w;
  w.format = &format;
  w.rows = rows;
  w.cols = cols;
  w.group = format.group;
  w.int8_input = format.quantized;
  llama2cpp::Plane& plane = w.planes[0];
  plane.row_bytes = llama2cpp::row_bytes(format, cols);
  plane.bytes = static_cast<std::size_t>(rows * plane.row_bytes);
  plane.owner = llama2cpp::Buffer::heap(plane.bytes);
  plane.data = plane.owner.data();
  format.encode(values.data(), nullptr, rows * cols, plane.owner.data());
  return w;
}

std::vector<Weight> make_experts(const char* format, std::int64_t n, std::int64_t rows, std::int64_t cols,
                                 std::uint64_t seed) {
  std::vector<Weight> all;
  for (std::int64_t e = 0; e < n; ++e)
    all.push_back(make_weight(format, rows, cols, seed + static_cast<std::uint64_t>(e)));
  return all;
}

// Some k of n experts for each token, ascending. Some experts have many tokens, and some none.
std::vector<std::int32_t> some_experts(std::int64_t tokens, std::int64_t k, std::int64_t n, std::uint64_t seed) {
  kernel_outputs::Random random(seed);
  std::vector<std::int32_t> ids;
  for (std::int64_t t = 0; t < tokens; ++t) {
    std::vector<std::int32_t> mine;
    while (static_cast<std::int64_t>(mine.size()) < k) {
      const auto wide = static_cast<std::uint32_t>(random.next() % 2 == 0 || k == n ? n : std::max(k, n / 2));
      const auto e = static_cast<std::int32_t>(random.next() % wide);
      if (std::find(mine.begin(), mine.end(), e) == mine.end()) mine.push_back(e);
    }
    std::sort(mine.begin(), mine.end());
    ids.insert(ids.end(), mine.begin(), mine.end());
  }
  return ids;
}

Tensor ints(std::vector<std::int32_t>& ids, std::int64_t tokens, std::int64_t k) {
  return {ids.data(), DType::i32, {tokens, k}};
}

struct Places {
  std::vector<float> memory;
  Tensor view;
  Places(std::int64_t rows, std::int64_t cols)
      : memory(static_cast<std::size_t>(rows * cols) + 1, kernel_outputs::kGuard), view(memory.data(), {rows, cols}) {}
  Bits bits() {
    CHECK(memory.back() == kernel_outputs::kGuard);
    Bits bits;
    bits.add(memory);
    return bits;
  }
};

}  // namespace

TEST_CASE("matmul_experts is each token alone times each of its experts") {
  const auto all = backends();
  CHECK(all.size() >= 2);
  constexpr std::int64_t kExperts = 5;
  constexpr std::int64_t kCols = 256;
  std::uint64_t seed = 1;
  for (const char* format : {"f32", "bf16", "q8_0", "q4_k"}) {
    auto first = make_experts(format, kExperts, 40, kCols, seed += 100);
    auto second = make_experts(format, kExperts, 33, kCols, seed += 100);
    for (const bool packed : {false, true}) {
      for (const std::int64_t tokens : {1, 2, 3, 37}) {
        for (const std::int64_t k : {1, 2, 5}) {
          auto ids = some_experts(tokens, k, kExperts, ++seed);
          const Tensor experts = ints(ids, tokens, k);
          for (const bool own_rows : {false, true}) {
            const std::int64_t rows = own_rows ? tokens * k : tokens;
            auto x = kernel_outputs::make(static_cast<std::size_t>(rows * kCols), Kind::ordinary, ++seed);
            auto gain = kernel_outputs::make(kCols, Kind::ordinary, ++seed);
            std::vector<float> scale(static_cast<std::size_t>(rows), 1.7F);
            const Tensor input(x.data(), {rows, kCols});
            const Norm norm = own_rows ? Norm{} : Norm{Tensor(scale.data(), {rows, 1}), Tensor(gain.data(), {kCols})};

            Places wanted_first(tokens * k, 40);
            Places wanted_second(tokens * k, 33);
            const Backend::Lease reference(*all[0], llama2cpp::kNoPoll);
            for (std::int64_t p = 0; p < tokens * k; ++p) {
              const auto e = static_cast<std::size_t>(ids[static_cast<std::size_t>(p)]);
              const std::int64_t row = own_rows ? p : p / k;
              const Weight one = first[e];
              const Weight two = second[e];
              const Weight* const weights[] = {&one, &two};
              const Tensor outs[] = {wanted_first.view.slice(p, 1), wanted_second.view.slice(p, 1)};
              Norm own = norm;
              if (own.scale) own.scale = own.scale.slice(row, 1);
              all[0]->matmul(weights, input.slice(row, 1), outs, own);
            }
            for (const auto& backend : all) {
              CAPTURE(format);
              CAPTURE(backend->isa());
              CAPTURE(packed);
              CAPTURE(tokens);
              CAPTURE(k);
              CAPTURE(own_rows);
              auto w1 = first;
              auto w2 = second;
              for (std::size_t e = 0; packed && e < w1.size(); ++e) {
                backend->pack(w1[e]);
                backend->pack(w2[e]);
              }
              Places got_first(tokens * k, 40);
              Places got_second(tokens * k, 33);
              const Tensor outs[] = {got_first.view, got_second.view};
              const ExpertWeights weights[] = {w1, w2};
              const std::unique_ptr<Backend::Lease> lease =
                  backend == all[0] ? nullptr : std::make_unique<Backend::Lease>(*backend, llama2cpp::kNoPoll);
              backend->matmul_experts(weights, input, experts, outs, norm);
              CHECK((got_first.bits() == wanted_first.bits()));
              CHECK((got_second.bits() == wanted_second.bits()));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("route takes the largest scores, of equal ones the lower, and weighs them in either order") {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  struct Row {
    std::vector<float> scores;
    std::vector<std::int32_t> chosen;
  };
  const Row rows[] = {
      {{0.5F, 2.0F, -1.0F, 1.0F}, {1, 3}},     {{1.0F, 1.0F, 1.0F, 1.0F}, {0, 1}},
      {{0.0F, 3.0F, -0.0F, 0.0F}, {0, 1}},     {{-kInfinity, -kInfinity, -kInfinity, 5.0F}, {0, 3}},
      {{2.0F, 1.0F, kNan, kInfinity}, {2, 3}}, {{-3.0F, -2.0F, -2.0F, -2.0F}, {1, 2}},
  };
  for (const auto& backend : backends()) {
    const Backend::Lease lease(*backend, llama2cpp::kNoPoll);
    for (const RouterOrder order : llama2cpp::kRouterOrders) {
      for (const bool renormalise : {false, true}) {
        for (const Row& row : rows) {
          std::vector<float> scores = row.scores;
          std::vector<std::int32_t> ids(2);
          std::vector<float> weights(2);
          backend->route(Tensor(scores.data(), {1, 4}), {order, renormalise, 2.5F}, ints(ids, 1, 2),
                         Tensor(weights.data(), {1, 2}));
          CAPTURE(to_string(order));
          CAPTURE(renormalise);
          CAPTURE(row.scores[0]);
          CHECK(ids == row.chosen);
          double all = 0.0;
          double both = 0.0;
          for (const float score : row.scores) all += std::exp(static_cast<double>(score));
          for (const std::int32_t e : row.chosen)
            both += std::exp(static_cast<double>(row.scores[static_cast<std::size_t>(e)]));
          for (std::size_t j = 0; j < 2; ++j) {
            const double part = std::exp(static_cast<double>(row.scores[static_cast<std::size_t>(ids[j])]));
            const bool of_both = order == RouterOrder::topk_softmax || renormalise;
            const double wanted = 2.5 * part / (of_both ? both : all);
            if (std::isnan(wanted)) {
              CHECK(std::isnan(weights[j]));
            } else {
              CHECK(weights[j] == doctest::Approx(wanted).epsilon(1e-6));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("route, biases and the sum of experts have the same bits everywhere, alone and with others") {
  constexpr std::int64_t kTokens = 29;
  constexpr std::int64_t kExperts = 19;
  constexpr std::int64_t kUsed = 4;
  constexpr std::int64_t kWidth = 300;
  std::vector<Bits> seen;
  for (const auto& backend : backends()) {
    const Backend::Lease lease(*backend, llama2cpp::kNoPoll);
    for (const std::int64_t at_once : {kTokens, std::int64_t{1}}) {
      auto scores = kernel_outputs::make(kTokens * kExperts, Kind::wide, 3);
      auto values = kernel_outputs::make(kTokens * kUsed * kWidth, Kind::wide, 4);
      auto biases = kernel_outputs::make(kExperts * kWidth, Kind::wide, 5);
      std::vector<std::int32_t> ids(kTokens * kUsed);
      Places weights(kTokens, kUsed);
      Places out(kTokens, kWidth);
      for (std::int64_t t = 0; t < kTokens; t += at_once) {
        const Tensor experts(ids.data() + t * kUsed, DType::i32, {at_once, kUsed});
        const Tensor x = Tensor(values.data(), {kTokens * kUsed, kWidth}).slice(t * kUsed, at_once * kUsed);
        backend->route(Tensor(scores.data(), {kTokens, kExperts}).slice(t, at_once),
                       {RouterOrder::softmax_topk, true, 1.0F}, experts, weights.view.slice(t, at_once));
        backend->add_expert_bias(x, Tensor(biases.data(), {kExperts, kWidth}), experts);
        backend->mix_experts(x, weights.view.slice(t, at_once), out.view.slice(t, at_once));
      }
      // The sum as it is defined: each product rounded, and added in the order of the experts' numbers.
      for (std::int64_t t = 0; t < kTokens; ++t) {
        for (std::int64_t i = 0; i < kWidth; ++i) {
          const float* const x = values.data() + t * kUsed * kWidth + i;
          float sum = x[0] * weights.view.row(t)[0];
          for (std::int64_t j = 1; j < kUsed; ++j) {
            const float product = x[j * kWidth] * weights.view.row(t)[j];
            sum += product;
          }
          CHECK(sum == out.view.row(t)[i]);
        }
      }
      Bits bits = out.bits();
      bits.add(weights.memory);
      bits.add(values);
      seen.push_back(bits);
    }
  }
  for (const Bits& bits : seen) CHECK((bits == seen[0]));
}

TEST_CASE("gradients of experts are those of each token alone, and of its own router") {
  const auto all = backends();
  constexpr std::int64_t kExperts = 5, kTokens = 37, kUsed = 3, kRows = 48, kOthers = 32, kCols = 64;
  auto first = make_experts("f32", kExperts, kRows, kCols, 1);
  auto second = make_experts("q8_0", kExperts, kOthers, kCols, 100);
  auto ids = some_experts(kTokens, kUsed, kExperts, 7);
  const Tensor experts = ints(ids, kTokens, kUsed);
  const auto numbers = [](std::int64_t n, std::uint64_t seed) {
    return kernel_outputs::make(static_cast<std::size_t>(n), Kind::ordinary, seed);
  };
  auto d1 = numbers(kTokens * kUsed * kRows, 2), d2 = numbers(kTokens * kUsed * kOthers, 3);
  const Tensor dys[] = {Tensor(d1.data(), {kTokens * kUsed, kRows}), Tensor(d2.data(), {kTokens * kUsed, kOthers})};
  auto d = numbers(kTokens * kCols, 4), x = numbers(kTokens * kUsed * kCols, 5), w = numbers(kTokens * kUsed, 6);
  auto s = numbers(kTokens * kExperts, 8);
  const Tensor scores(s.data(), {kTokens, kExperts}), weights(w.data(), {kTokens, kUsed});
  const Routing routings[] = {
      {RouterOrder::softmax_topk, false, 1.0F}, {RouterOrder::softmax_topk, true, 2.5F}, {RouterOrder::topk_softmax}};
  Places wanted(kTokens * kUsed, kCols);
  std::vector<Bits> before;
  for (const auto& backend : all) {
    CAPTURE(backend->isa());
    const Backend::Lease lease(*backend, llama2cpp::kNoPoll);
    for (std::int64_t p = 0; before.empty() && p < kTokens * kUsed; ++p) {
      const auto e = static_cast<std::size_t>(ids[static_cast<std::size_t>(p)]);
      const Weight* const own[] = {&first[e], &second[e]};
      const Tensor rows[] = {dys[0].slice(p, 1), dys[1].slice(p, 1)};
      backend->matmul_transposed(own, rows, wanted.view.slice(p, 1));
    }
    Places found(kTokens * kUsed, kCols);
    const ExpertWeights lists[] = {first, second};
    backend->matmul_experts_transposed(lists, dys, experts, found.view);
    CHECK((found.bits() == wanted.bits()));

    std::vector<Bits> after;
    Places dx(kTokens * kUsed, kCols), dweights(kTokens, kUsed);
    backend->mix_experts_gradient(Tensor(d.data(), {kTokens, kCols}), Tensor(x.data(), {kTokens * kUsed, kCols}),
                                  weights, dx.view, dweights.view);
    after.push_back(dx.bits());
    after.push_back(dweights.bits());
    for (std::int64_t p = 0; p < kTokens * kUsed; ++p) {
      double sum = 0.0;
      for (std::int64_t i = 0; i < kCols; ++i) {
        const float given = d[static_cast<std::size_t>(p / kUsed * kCols + i)];
        CHECK(dx.view.row(p)[i] == given * w[static_cast<std::size_t>(p)]);
        sum += static_cast<double>(given) * static_cast<double>(x[static_cast<std::size_t>(p * kCols + i)]);
      }
      CHECK(std::abs(static_cast<double>(dweights.view.row(p / kUsed)[p % kUsed]) - sum) < 1e-4);
    }
    for (const Routing& routing : routings) {  // central differences of the weights that route would give
      Places dscores(kTokens, kExperts);
      backend->route_gradient(scores, routing, experts, weights, dscores.view);
      after.push_back(dscores.bits());
      for (std::int64_t t = 0; t < kTokens; ++t) {
        const auto value = [&](std::int64_t moved, double by) {
          double over = 0.0, of_chosen = 0.0, sum = 0.0;
          const auto exponential = [&](std::int64_t e) {
            return std::exp(static_cast<double>(scores.row(t)[e]) + (e == moved ? by : 0.0));
          };
          for (std::int64_t e = 0; e < kExperts; ++e) over += exponential(e);
          for (std::int64_t j = 0; j < kUsed; ++j) {
            of_chosen += exponential(experts.integers(t)[j]);
            sum += exponential(experts.integers(t)[j]) * static_cast<double>(weights.row(t)[j]);
          }
          const bool chosen = routing.renormalise || routing.order == RouterOrder::topk_softmax;
          return sum / (chosen ? of_chosen : over) * static_cast<double>(routing.scale);
        };
        for (std::int64_t e = 0; e < kExperts; ++e) {
          const double slope = (value(e, 1e-4) - value(e, -1e-4)) / 2e-4;
          CHECK(std::abs(static_cast<double>(dscores.view.row(t)[e]) - slope) < 1e-5);
        }
      }
    }
    if (before.empty()) before = after;
    CHECK((before == after));
  }
}

TEST_CASE("ops on experts refuse operands that do not fit, and say what they expected") {
  CpuBackend be(1, *llama2cpp::reference_kernels());
  const Backend::Lease lease(be, llama2cpp::kNoPoll);
  std::vector<float> memory(4096, 1.0F);
  float* next = memory.data();
  const auto tensor = [&](std::initializer_list<std::int64_t> sizes) {
    const Tensor t(next, sizes);
    next += t.rows() * t.columns();
    return t;
  };
  std::vector<std::int32_t> ids{0, 2, 1, 2};
  const Tensor experts = ints(ids, 2, 2);
  const Tensor weights = tensor({2, 2});
  const Tensor scores = tensor({2, 3});
  const Tensor x = tensor({2, 8});
  const Tensor places = tensor({4, 8});
  const Tensor out = tensor({4, 5});
  const auto w = make_experts("f32", 3, 5, 8, 1);
  const ExpertWeights lists[] = {w};
  const auto refused = [](const char* message, auto call) {
    CAPTURE(message);
    CHECK_THROWS_WITH_AS(call(), doctest::Contains(message), std::invalid_argument);
  };
  const auto multiply = [&](const Tensor& in, const Tensor& chosen, const Tensor& to, const Norm& norm = {}) {
    return [&, in, chosen, to, norm] { be.matmul_experts(lists, in, chosen, {&to, 1}, norm); };
  };
  multiply(x, experts, out)();
  multiply(places, experts, out)();
  refused("[route] scores are [2, 3] but experts are [2, 4], expected [T, k] of type i32 with k from 1 to 3", [&] {
    be.route(scores, {}, Tensor(ids.data(), DType::i32, {2, 4}), weights);
  });
  refused("[route] experts is [2, 2] but weights is [1, 2]",
          [&] { be.route(scores, {}, experts, weights.slice(0, 1)); });
  refused("[matmul_experts] x is [1, 8] but experts are [2, 2], expected 2 or 4 rows",
          multiply(x.slice(0, 1), experts, out));
  refused("[matmul_experts] out is [3, 5], expected 4 rows", multiply(x, experts, out.slice(0, 3)));
  refused("[matmul_experts] w is [5, 8] but x is [2, 3]", multiply(scores, experts, out));
  refused("[matmul_experts] w is [5, 8] but out is [4, 8]", multiply(x, experts, places));
  refused("overlaps x [4, 8]", multiply(places, experts, Tensor(places.row(0), {4, 5})));
  refused("[matmul_experts] x is [2, 8] but norm.scale is [2, 2]", multiply(x, experts, out, {weights, {}}));
  std::vector<std::int32_t> wrong{0, 3, 1, 2};
  refused("[matmul_experts] expert 1 of token 0 is 3, expected numbers of 3 experts, ascending",
          multiply(x, ints(wrong, 2, 2), out));
  wrong = {0, 1, -1, 2};
  refused("expert 0 of token 1 is -1", multiply(x, ints(wrong, 2, 2), out));
  wrong = {0, 1, 1, 1};
  refused("expert 1 of token 1 is 1", multiply(x, ints(wrong, 2, 2), out));
  refused("[add_expert_bias] x is [4, 8] but biases are [4, 5], expected [E, 8]",
          [&] { be.add_expert_bias(places, out, experts); });
  refused("[add_expert_bias] x is [2, 8], expected 4 rows", [&] { be.add_expert_bias(x, tensor({3, 8}), experts); });
  refused("[matmul_experts_transposed] 1 weights of experts but 0 dys",
          [&] { be.matmul_experts_transposed(lists, {}, experts, places); });
  refused("[matmul_experts_transposed] dy is [2, 3] and out is [4, 8], expected 4 rows", [&] {
    be.matmul_experts_transposed(lists, {&scores, 1}, experts, places);
  });
  refused("[mix_experts_gradient] d is [2, 8] and weights are [2, 2] but x is [2, 8]",
          [&] { be.mix_experts_gradient(x, x, weights, places, weights); });
  refused("[mix_experts_gradient] dweights [2, 2] overlaps weights [2, 2]", [&] {
    be.mix_experts_gradient(x, places, weights, tensor({4, 8}), weights);
  });
  refused("[route_gradient] scores is [2, 3] but dscores is [2, 8]",
          [&] { be.route_gradient(scores, {}, experts, weights, x); });
  refused("[route_gradient] dscores [2, 3] overlaps scores [2, 3]",
          [&] { be.route_gradient(scores, {}, experts, weights, scores); });
  refused("[mix_experts] x is [2, 8], expected 4 rows", [&] { be.mix_experts(x, weights, x); });
  refused("[mix_experts] x is [4, 8] and weights are [2, 2], but out is [4, 5]",
          [&] { be.mix_experts(places, weights, out); });
  refused("[mix_experts] out [2, 8] overlaps x [4, 8]", [&] { be.mix_experts(places, weights, places.slice(1, 2)); });
}
