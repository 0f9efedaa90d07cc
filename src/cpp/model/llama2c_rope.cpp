// The GNU C library's powf and sincosf for what rotary embedding asks of them. Both work in double and round once at the
// end, which is right but for one result in some thousands: those are why this is not just a cosine in double.
#include "model/llama2c_rope.h"

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

// An angle less the nearest multiple of pi / 2, and which multiple that is, mod 4.
struct Reduced {
  double rest;
  std::uint32_t quarter;
};

// Below 120 the product with 2 / pi is exact enough.
Reduced reduce_small(double angle) {
  constexpr double kTwoOverPi = 0x1.45f306dc9c883p+23;  // 2 / pi * 2^24
  const std::int32_t scaled = static_cast<std::int32_t>(angle * kTwoOverPi);
  const std::int32_t multiple = (scaled + (1 << 23)) >> 24;
  return {std::fma(-static_cast<double>(multiple), 0x1.921fb54442d18p+0, angle),
          static_cast<std::uint32_t>(multiple) % 4};
}

// Beyond, 96 bits of 2 / pi, beginning where the angle's exponent wants them. Bits further up count whole turns, bits
// further down do not matter.
Reduced reduce_large(float angle) {
  constexpr std::uint8_t kTwoOverPi[] = {0xA2, 0xF9, 0x83, 0x6E, 0x4E, 0x44, 0x15, 0x29, 0xFC, 0x27, 0x57, 0xD1,
                                         0xF5, 0x34, 0xDD, 0xC0, 0xDB, 0x62, 0x95, 0x99, 0x3C, 0x43, 0x90, 0x41};
  const auto bits = std::bit_cast<std::uint32_t>(angle);
  const std::uint32_t last = (bits >> 26) % 16;  // byte of the first 32 bits, which end there
  const auto word = [&](std::uint32_t end) {
    std::uint64_t value = 0;
    for (std::uint32_t back = 4; back-- > 0;) value = value << 8 | (end >= back ? kTwoOverPi[end - back] : 0U);
    return value;
  };
  const std::uint64_t mantissa = std::uint64_t{(bits & 0xFFFFFFU) | 0x800000U} << ((bits >> 23) % 8);
  std::uint64_t turns = (mantissa * word(last)) << 32;  // quarter turns, the upper two bits whole ones
  turns += mantissa * word(last + 4);
  turns += (mantissa * word(last + 8)) >> 32;
  const std::uint64_t quarter = (turns + (std::uint64_t{1} << 61)) >> 62;
  const auto rest = static_cast<std::int64_t>(turns - (quarter << 62));
  return {static_cast<double>(rest) * 0x1.921fb54442d18p-62, static_cast<std::uint32_t>(quarter % 4)};
}

}  // namespace

float llama2c_power_of_10000(float y) {
  constexpr double kLog2 = 0x1.a934f0979a22dp+3;  // log2(10000), as its table and polynomial have it
  constexpr double kRound = kExpRound / 32.0;     // adding it rounds to a multiple of 1 / 32
  const double exponent = double{y} * kLog2;
  const double shifted = exponent + kRound;
  const double r = (exponent - (shifted - kRound)) * 32.0;  // exact
  const auto steps = std::bit_cast<std::uint64_t>(shifted);
  const auto power = std::bit_cast<double>(kExpTable[steps % 32] + (steps << 47));
  const double high = std::fma(kExpCubic, r, kExpSquare);
  const double low = std::fma(kExpLinear, r, 1.0);
  return static_cast<float>(std::fma(high, r * r, low) * power);
}

SinCos llama2c_sin_cos(float angle) {
  if (angle < 0x1p-12F) return {angle, 1.0F};
  Reduced reduced{double{angle}, 0};
  if (angle >= 120.0F) {
    reduced = reduce_large(angle);
  } else if (angle >= 0.75F) {
    reduced = reduce_small(double{angle});
  }
  // sin x and cos x for x in [-pi / 4, pi / 4]; then turned by quarters.
  const double x = reduced.rest;
  const double square = x * x;
  const double cube = square * x;
  const double fourth = square * square;
  const double sin_low = std::fma(cube, -0x1.555545995a603p-3, x);
  const double sin_high = std::fma(square, -0x1.994eb3774cf24p-13, 0x1.1107605230bc4p-7);
  const auto sin = static_cast<float>(std::fma(cube * square, sin_high, sin_low));
  const double cos_low = std::fma(fourth, 0x1.55553e1068f19p-5, std::fma(square, -0x1.ffffffd0c621cp-2, 1.0));
  const double cos_high = std::fma(square, 0x1.99343027bf8c3p-16, -0x1.6c087e89a359dp-10);
  const auto cos = static_cast<float>(std::fma(fourth * square, cos_high, cos_low));
  switch (reduced.quarter) {
    case 0:
      return {sin, cos};
    case 1:
      return {cos, -sin};
    case 2:
      return {-sin, -cos};
    default:
      return {-cos, sin};
  }
}

}  // namespace llama2cpp
