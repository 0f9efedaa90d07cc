// The sampler's e^x: how near it is to the true one, that it is the GNU C library's expf, and its sum.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "sample/exponentials.h"

namespace {

using llama2cpp::exponentials;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// e^x of numbers x <= 0.
std::vector<float> exponentials_of(const std::vector<float>& x) {
  std::vector<float> e(x.size());
  exponentials(x, 1.0F, 0.0F, e);
  return e;
}

// Every `stride`-th float from -0 down to -105.
std::vector<float> negative_floats(std::uint32_t stride) {
  std::vector<float> x;
  for (auto bits = std::bit_cast<std::uint32_t>(-0.0F); bits < std::bit_cast<std::uint32_t>(-105.0F); bits += stride) {
    x.push_back(std::bit_cast<float>(bits));
  }
  return x;
}

}  // namespace

TEST_CASE("e^x is within 0.51 units in the last place, and rises with x") {
  const std::vector<float> x = negative_floats(997);
  const std::vector<float> e = exponentials_of(x);
  double worst = 0;
  std::size_t falls = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(double{x[i]});
    const double unit = std::max(std::ldexp(1.0, std::ilogb(exact) - 23), std::ldexp(1.0, -149));
    worst = std::max(worst, std::abs(double{e[i]} - exact) / unit);
    falls += i > 0 && e[i] > e[i - 1] ? 1 : 0;
  }
  CHECK(worst < 0.51);
  CHECK(falls == 0);
}

#ifdef __GLIBC__
TEST_CASE("e^x is the GNU C library's, but for one float where that has fma") {
  std::vector<float> x = negative_floats(997);
  x.push_back(-0x1.f8cbb2p+5F);  // the one
  const std::vector<float> e = exponentials_of(x);
  std::size_t different = 0;
  for (std::size_t i = 0; i + 1 < x.size(); ++i) different += e[i] == std::exp(x[i]) ? 0 : 1;
  CHECK(different == 0);
  CHECK(e.back() == 0x1.f45324p-92F);
}
#endif

TEST_CASE("e^0 is 1, of what is forbidden or far below 0") {
  CHECK(exponentials_of({0.0F, -0.0F, -kInfinity, -3e38F, -104.0F, -103.9F}) ==
        std::vector<float>{1.0F, 1.0F, 0.0F, 0.0F, 0.0F, std::numeric_limits<float>::denorm_min()});
}

TEST_CASE("any number of logits: each as if it were alone, the sum from the first on, in place too") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0F, 6.0F);
  for (std::size_t size = 1; size < 200; ++size) {
    std::vector<float> logits(size);
    for (float& logit : logits) logit = normal(random);
    if (size > 3) logits[size / 2] = -kInfinity;
    const float largest = *std::max_element(logits.begin(), logits.end());
    for (const float temperature : {0.3F, 1.0F, 1e-39F}) {
      std::vector<float> e(size);
      const float sum = exponentials(logits, temperature, largest, e);
      float expected_sum = 0.0F;
      for (std::size_t i = 0; i < size; ++i) {
        std::vector<float> alone(1);
        exponentials({&logits[i], 1}, temperature, largest, alone);
        CHECK(alone[0] == e[i]);
        expected_sum += alone[0];
      }
      CHECK(sum == expected_sum);
      std::vector<float> same = logits;
      CHECK(exponentials(same, temperature, largest, same) == sum);
      CHECK(same == e);
    }
  }
}
