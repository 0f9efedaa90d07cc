// GPTQ's arithmetic has one order: the hash is the same on every processor, with every compiler and any number of threads.
// tests/export/test_gptq_export.py holds the numbers themselves against the paper's equations.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "format/gptq_encode.h"
#include "format/gptq_factor.h"

using llama2cpp::GptqCodes;
using llama2cpp::GptqGrid;
using llama2cpp::ThreadPool;

namespace {

constexpr std::int64_t kRows = 70;
constexpr std::int64_t kCols = 300;

class Random {
 public:
  // Evenly spread in [-1, 1): exact in float.
  float next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<float>(static_cast<std::int32_t>(state_ >> 40)) / 8388608.0F - 1.0F;
  }

 private:
  std::uint64_t state_ = 1;
};

class Hash {
 public:
  template <typename T>
  void add(std::span<const T> values) {
    for (const std::byte byte : std::as_bytes(values)) value_ = (value_ ^ std::uint64_t(byte)) * 1099511628211ULL;
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 14695981039346656037ULL;
};

// Of 600 inputs that are no more than their neighbours' sums with something of their own: [kCols, kCols].
std::vector<double> hessian(Random& random) {
  const auto n = static_cast<std::size_t>(kCols);
  std::vector<double> sums(n * n);
  std::vector<double> x(n);
  for (int t = 0; t < 600; ++t) {
    for (std::size_t k = 0; k < n; ++k) {
      x[k] = (k == 0 ? 0.0 : 0.5 * x[k - 1]) + static_cast<double>(random.next());
    }
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t k = 0; k < n; ++k) sums[i * n + k] += x[i] * x[k];
    }
  }
  for (std::size_t k = 0; k < n; ++k) sums[k * n + k] += 1.0;
  return sums;
}

std::uint64_t hash_with(int threads, const GptqGrid& grid) {
  Random random;
  ThreadPool pool(threads);
  std::vector<double> h = hessian(random);
  std::vector<double> u(h.size());
  REQUIRE(llama2cpp::gptq_factor(h, u, kCols, pool));
  std::vector<float> weight(static_cast<std::size_t>(kRows * kCols));
  std::ranges::generate(weight, [&] { return random.next() * random.next(); });
  std::vector<std::int32_t> order(static_cast<std::size_t>(kCols));
  std::iota(order.begin(), order.end(), 0);
  std::ranges::reverse(order);
  const auto groups = static_cast<std::size_t>(llama2cpp::gptq_groups(kCols, grid.group) * kRows);
  std::vector<std::uint8_t> q(weight.size());
  std::vector<std::uint8_t> zeros(groups);
  std::vector<std::uint16_t> scales(groups);
  std::vector<float> values(weight.size());
  std::vector<double> losses(static_cast<std::size_t>(kRows));
  llama2cpp::gptq_encode(weight, kCols, order, u, grid, GptqCodes{q, scales, zeros, values, losses}, pool);
  Hash hash;
  hash.add<double>(u);
  hash.add<std::uint8_t>(q);
  hash.add<std::uint16_t>(scales);
  hash.add<std::uint8_t>(zeros);
  hash.add<float>(values);
  hash.add<double>(losses);
  return hash.value();
}

}  // namespace

TEST_CASE("GPTQ's codes, scales and factor are the same bits everywhere") {
  const GptqGrid usual{.bits = 4, .group = 64, .symmetric = true, .search = true};
  const GptqGrid other{.bits = 3, .group = 300, .symmetric = false, .search = false};
  for (const int threads : {1, 2, 3}) {
    CAPTURE(threads);
    CHECK(hash_with(threads, usual) == 11356857156245257454ULL);
    CHECK(hash_with(threads, other) == 2375730070961045494ULL);
  }
}

TEST_CASE("a factor of what is not positive definite is refused") {
  ThreadPool pool(1);
  std::vector<double> h{1.0, 2.0, 2.0, 1.0};
  std::vector<double> u(4);
  CHECK_FALSE(llama2cpp::gptq_factor(h, u, 2, pool));
}
