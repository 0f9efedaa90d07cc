// K-quants' search in registers of eight gives the numbers of the plain loops, for whatever it is given.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "format/k_fit.h"

namespace {

using llama2cpp::KBlock;
using Numbers = std::array<float, 256>;

std::uint32_t random_bits(std::uint32_t& state) {
  state = state * 1664525U + 1013904223U;
  return state >> 8;
}

float random_number(std::uint32_t& state) { return static_cast<float>(random_bits(state)) * 0x1p-24F - 0.5F; }

bool equal(const KBlock& a, const KBlock& b) {
  return a.d == b.d && a.dmin == b.dmin && a.scales == b.scales && a.minima == b.minima && a.codes == b.codes;
}

// Every search of `x`, in both ways.
void check_ways(const Numbers& x, const float* importance) {
  const auto same = [&](auto fit, int most, int most_scale) {
    CAPTURE(most);
    CHECK(equal(fit(x.data(), importance, most, most_scale, true), fit(x.data(), importance, most, most_scale, false)));
  };
  same(llama2cpp::fit_affine<16>, 3, 15);
  same(llama2cpp::fit_affine<32>, 15, 63);
  same(llama2cpp::fit_affine<32>, 31, 63);
  same(llama2cpp::fit_symmetric<16>, 4, 32);
  same(llama2cpp::fit_symmetric<16>, 32, 128);
}

}  // namespace

TEST_CASE("K-quants are the same numbers in registers of eight as in loops" *
          doctest::skip(!llama2cpp::fits_in_registers())) {
  std::uint32_t state = 1;
  Numbers importance;
  for (float& w : importance) w = static_cast<float>(random_bits(state)) * 0x1p-24F;
  importance[7] = 0.0F;
  std::fill(importance.begin() + 32, importance.begin() + 64, 0.0F);

  constexpr float kLargest = std::numeric_limits<float>::max();
  for (const float size : {0.02F, 1.0F, 1e4F, 1e-7F, 1e-40F, kLargest}) {
    for (int trial = 0; trial < 50; ++trial) {
      CAPTURE(size);
      CAPTURE(trial);
      Numbers x;
      for (float& number : x) number = random_number(state) * size;
      const auto at = static_cast<std::ptrdiff_t>(random_bits(state) % 224);
      if (trial % 4 == 1) std::fill_n(x.begin() + at, 32, 0.0F);
      if (trial % 4 == 2) std::fill_n(x.begin() + at, 32, x[0]);
      if (trial % 4 == 3)
        std::for_each_n(x.begin() + at, 32, [](float& number) { number = number < 0 ? -number : number; });
      check_ways(x, nullptr);
      check_ways(x, importance.data());
    }
  }
  check_ways(Numbers{}, nullptr);
  check_ways(Numbers{}, importance.data());
}
