// Activations and what they are made of: how far the reference is from double arithmetic, over all floats, and what becomes
// of zeros, denormals, infinities and NaN. That kernels give the reference's bits is in test_kernels.cpp.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "backend/cpu/isa/select.h"
#include "backend/cpu/kernel_table.h"

namespace {

using llama2cpp::Activation;
using Numbers = std::vector<float>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kLeast = std::numeric_limits<float>::denorm_min();
constexpr float kMost = std::numeric_limits<float>::max();
constexpr double kUnit = 0x1p-24;  // half a unit in the last place of 1

// Every `stride`-th finite float, of both signs.
Numbers floats(std::uint32_t stride) {
  Numbers all;
  for (std::uint32_t bits = 0; bits < 0x7F800000U; bits += stride) {
    all.push_back(std::bit_cast<float>(bits));
    all.push_back(std::bit_cast<float>(bits | 0x80000000U));
  }
  return all;
}

Numbers activate(Activation activation, const Numbers& x) {
  Numbers out(x.size());
  llama2cpp::reference_kernels()->gated(activation, x.data(), nullptr, out.data(), static_cast<std::int64_t>(x.size()));
  return out;
}

Numbers clamped_swiglu(const Numbers& gate, const Numbers& up,
                       const llama2cpp::KernelTable& table = *llama2cpp::reference_kernels()) {
  Numbers out(gate.size());
  table.gated(Activation::clamped_swiglu, gate.data(), up.data(), out.data(), static_cast<std::int64_t>(gate.size()));
  return out;
}

Numbers soft_cap(const Numbers& x, float cap, const llama2cpp::KernelTable& table = *llama2cpp::reference_kernels()) {
  Numbers out(x.size());
  table.soft_cap(x.data(), cap, out.data(), static_cast<std::int64_t>(x.size()));
  return out;
}

double gelu_slope(double x) { return std::sqrt(8.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x); }

// Whether all numbers and their signs are equal, or NaN in both.
bool same(const Numbers& a, const Numbers& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](float x, float y) {
    return (std::isnan(x) && std::isnan(y)) || (x == y && std::signbit(x) == std::signbit(y));
  });
}

// Largest |got - exact| where `wanted`, in what `unit` of x and the exact result says. e^-87, which is taken for 0 from there
// on, counts |x| times.
template <class Exact, class UnitOf>
double worst_error(const Numbers& x, const Numbers& got, Exact exact, UnitOf unit_of) {
  double worst = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double value = exact(double{x[i]});
    if (std::abs(value) > double{kMost}) continue;
    const double flushed = std::abs(double{x[i]}) * 0x1p-125 + 0x1p-149;
    const double error = std::abs(double{got[i]} - value) - flushed;
    worst = std::max(worst, error / unit_of(double{x[i]}, value));
  }
  return worst;
}

}  // namespace

TEST_CASE("silu is within 4 halves of an ulp of double arithmetic") {
  const Numbers x = floats(997);
  const double worst = worst_error(
      x, activate(Activation::silu, x), [](double v) { return v / (1.0 + std::exp(-v)); },
      [](double, double exact) { return kUnit * std::abs(exact); });
  MESSAGE("silu: ", worst, " * 2^-24");
  CHECK(worst < 4.0);
}

// Far below 0, e^y makes of a relative error of y one that is y times as large.
TEST_CASE("gelu_tanh is within 4 halves of an ulp, and far below 0 within 4 (1 + |y|), of double arithmetic") {
  const Numbers x = floats(997);
  const Numbers got = activate(Activation::gelu_tanh, x);
  const auto exact = [](double v) { return v / (1.0 + std::exp(-gelu_slope(v))); };
  const double near = worst_error(x, got, exact, [](double v, double value) {
    return v > -0.5 ? kUnit * std::abs(value) : std::numeric_limits<double>::infinity();
  });
  const double far = worst_error(x, got, exact, [](double v, double value) {
    return kUnit * std::abs(value) * (1.0 + std::max(0.0, -gelu_slope(v)));
  });
  MESSAGE("gelu_tanh: ", near, " * 2^-24, far below 0 ", far, " * 2^-24 (1 + |y|)");
  CHECK(near < 4.0);
  CHECK(far < 4.0);
}

TEST_CASE("relu_squared is rounded once") {
  const Numbers x = floats(997);
  const Numbers got = activate(Activation::relu_squared, x);
  std::size_t different = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = x[i] > 0.0F ? double{x[i]} * double{x[i]} : 0.0;
    different += got[i] == static_cast<float>(exact) ? 0 : 1;
  }
  CHECK(different == 0);
}

// 1.702 x is rounded, and e^y makes of a relative error of y one that is y times as large. What is near -1 and has 1 added to
// it is exact where it is not far below.
TEST_CASE("clamped_swiglu is within 10 (1 + |y|, of y below 0) halves of an ulp of double arithmetic") {
  const Numbers x = floats(997);
  for (const float up : {0.0F, 0.37F, -1.0F, -0.75F, 5.5F, 7.0F, 7.5F, -7.0F, -100.0F}) {
    const Numbers got = clamped_swiglu(x, Numbers(x.size(), up));
    const double factor = std::clamp(double{up}, -7.0, 7.0) + 1.0;
    const auto slope = [](double v) { return double{1.702F} * std::min(v, 7.0); };
    const double worst = worst_error(
        x, got, [&](double v) { return factor * std::min(v, 7.0) / (1.0 + std::exp(-slope(v))); },
        [&](double v, double exact) {
          return kUnit * std::abs(exact) * (1.0 + std::max(0.0, -slope(v))) +
                 std::abs(factor) * (std::abs(v) * 0x1p-125 + 0x1p-149) + 0x1p-149;  // e^-87 is taken for 0
        });
    MESSAGE("clamped_swiglu with ", up, ": ", worst, " * 2^-24");
    CHECK(worst < 10.0);
  }
}

TEST_CASE("clamped_swiglu keeps its bounds, and of NaN gives NaN") {
  const Numbers got = clamped_swiglu({7.0F, 8.0F, kInfinity, 7.0F, 7.0F, 7.0F, 3.0F, -kMost},
                                     {1.0F, 1.0F, 1.0F, 7.0F, kInfinity, 8.0F, -1.0F, 2.0F});
  CHECK(same({got[1], got[2], got[4], got[5]}, {got[0], got[0], got[3], got[3]}));
  CHECK(same({got[6], got[7]}, {0.0F, -0.0F}));
  const Numbers low = clamped_swiglu({2.0F, 2.0F, 2.0F}, {-7.0F, -9.0F, -kInfinity});
  CHECK(same({low[1], low[2]}, {low[0], low[0]}));
  const Numbers nan = clamped_swiglu({kNan, 1.0F, kNan, -kInfinity}, {1.0F, kNan, kNan, 1.0F});
  CHECK(std::all_of(nan.begin(), nan.end(), [](float v) { return std::isnan(v); }));
}

// The division, tanh and the product with the cap.
TEST_CASE("soft_cap is within 5 halves of an ulp of double arithmetic") {
  const Numbers x = floats(997);
  for (const float cap : {1.0F, 0.3F, 30.0F, 50.0F}) {
    const Numbers got = soft_cap(x, cap);
    const double worst = worst_error(
        x, got, [&](double v) { return double{cap} * std::tanh(v / double{cap}); },
        [&](double, double exact) {
          return kUnit * std::abs(exact) + double{cap} * 0x1p-149;
        });  // x / cap may be denormal
    MESSAGE("soft_cap at ", cap, ": ", worst, " * 2^-24");
    CHECK(worst < 5.0);
    CHECK(std::all_of(got.begin(), got.end(), [&](float v) { return std::abs(v) <= cap; }));
  }
}

TEST_CASE("soft_cap rises with x, is odd, and keeps zeros, denormals and NaN") {
  Numbers x;
  for (std::uint32_t bits = 0; bits < 0x7F800000U; bits += 499) x.push_back(std::bit_cast<float>(bits));
  const Numbers up = soft_cap(x, 1.0F);
  CHECK(std::is_sorted(up.begin(), up.end()));
  Numbers negative = x;
  for (float& v : negative) v = -v;
  Numbers down = soft_cap(negative, 1.0F);
  for (float& v : down) v = -v;
  CHECK(same(up, down));
  CHECK(same(soft_cap({0.0F, -0.0F, kLeast, -kLeast, kMost, -kMost, kInfinity, -kInfinity, kNan}, 1.0F),
             {0.0F, -0.0F, kLeast, -kLeast, 1.0F, -1.0F, 1.0F, -1.0F, kNan}));
  CHECK(same(soft_cap({kMost, -kInfinity, 100.0F}, 0.5F), {0.5F, -0.5F, 0.5F}));
}

TEST_CASE("activations of zeros, denormals, what is huge, infinities and NaN") {
  const Numbers x = {0.0F, -0.0F, kLeast, -kLeast, 3 * kLeast, kMost, -kMost, -100.0F, kInfinity, kNan};
  const Numbers halved = {0.0F, -0.0F, 0.0F, -0.0F, 2 * kLeast, kMost, -0.0F, -0.0F, kInfinity, kNan};
  CHECK(same(activate(Activation::silu, x), halved));
  CHECK(same(activate(Activation::gelu_tanh, x), halved));
  CHECK(same(activate(Activation::relu_squared, x),
             {0.0F, 0.0F, 0.0F, 0.0F, 0.0F, kInfinity, 0.0F, 0.0F, kInfinity, kNan}));
  // x times a sigmoid of 0: as PyTorch has it.
  CHECK(std::isnan(activate(Activation::silu, {-kInfinity})[0]));
  CHECK(std::isnan(activate(Activation::gelu_tanh, {-kInfinity})[0]));
  CHECK(activate(Activation::relu_squared, {-kInfinity})[0] == 0.0F);
}

TEST_CASE("activations over all floats: the best kernels of this machine give the reference's bits") {
  const Numbers x = floats(1009);
  const auto n = static_cast<std::int64_t>(x.size());
  for (const Activation activation : {Activation::silu, Activation::gelu_tanh, Activation::relu_squared}) {
    for (const llama2cpp::KernelTable* table : {llama2cpp::scalar_kernels(), &llama2cpp::select_kernels("")}) {
      CAPTURE(table->name);
      Numbers got(x.size());
      table->gated(activation, x.data(), nullptr, got.data(), n);
      CHECK(same(got, activate(activation, x)));
      CHECK(same(soft_cap(x, 1.0F, *table), soft_cap(x, 1.0F)));
    }
  }
  Numbers other = x;
  std::reverse(other.begin(), other.end());
  for (const llama2cpp::KernelTable* table : {llama2cpp::scalar_kernels(), &llama2cpp::select_kernels("")}) {
    CAPTURE(table->name);
    CHECK(same(clamped_swiglu(x, other, *table), clamped_swiglu(x, other)));
    CHECK(same(clamped_swiglu(other, x, *table), clamped_swiglu(other, x)));
  }
}
