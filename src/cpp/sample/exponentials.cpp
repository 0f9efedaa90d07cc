// The GNU C library's expf, a block of numbers at a time: each loop below is one that compilers turn into vectors, those
// of every processor of the family. Its numbers are multiplied and added here without fma, which a family's oldest
// processors do not have: of the 1,121,058,816 floats from -105 to 0 one gets another result, in the last bit
// (tests/cpp/test_exponentials.cpp).
#include "sample/exponentials.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <limits>

#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

constexpr std::size_t kBlock = 32;

// e^x, as a float 0 from about -104 on: no number has to be smaller.
constexpr float kLowest = -200.0F;

// x [kBlock], at most 0, becomes e^x.
void exponentiate(float* x) {
  std::uint64_t power[kBlock];  // k, as the lowest bits of a double; then the bits of 2^(k / 32)
  double rest[kBlock];
  for (std::size_t i = 0; i < kBlock; ++i) x[i] = x[i] > kLowest ? x[i] : kLowest;
  for (std::size_t i = 0; i < kBlock; ++i) {
    const double scaled = kExpScale * double{x[i]};
    const double rounded = scaled + kExpRound;
    power[i] = std::bit_cast<std::uint64_t>(rounded);
    rest[i] = scaled - (rounded - kExpRound);
  }
  for (std::size_t i = 0; i < kBlock; ++i) power[i] = kExpTable[power[i] % 32] + (power[i] << 47);
  for (std::size_t i = 0; i < kBlock; ++i) {
    const double r = rest[i];
    const double high = kExpCubic * r + kExpSquare;
    const double low = kExpLinear * r + 1.0;
    x[i] = static_cast<float>((high * (r * r) + low) * std::bit_cast<double>(power[i]));
  }
}

}  // namespace

float exponentials(std::span<const float> logits, float temperature, float largest, std::span<float> e) {
  const float scaled = largest / temperature;
  const bool in_range = std::isfinite(scaled);
  float sum = 0.0F;
  float x[kBlock];
  for (std::size_t begin = 0; begin < logits.size(); begin += kBlock) {
    const std::size_t count = std::min(kBlock, logits.size() - begin);
    if (count < kBlock) std::fill_n(x, kBlock, kLowest);
    const float* const from = logits.data() + begin;
    float* const to = e.data() + begin;
    if (in_range) {
      for (std::size_t i = 0; i < count; ++i) x[i] = from[i] / temperature - scaled;
    } else {  // a temperature so small that the quotient overflows: the difference is the same and does not
      for (std::size_t i = 0; i < count; ++i) x[i] = (from[i] - largest) / temperature;
    }
    exponentiate(x);
    for (std::size_t i = 0; i < count; ++i) {
      to[i] = x[i];
      sum += x[i];
    }
  }
  return sum;
}

}  // namespace llama2cpp
