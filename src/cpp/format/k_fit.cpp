// Coordinate descent: integers for given halves, halves for given integers, with the codes rounded anew for each choice. It
// begins with what each group alone would like (k_groups.h).
#include "format/k_fit.h"

#include <algorithm>

#include "format/k_groups.h"

namespace llama2cpp {
namespace {

constexpr Way kPlainWeighed{.weighed = true, .in_registers = false};
constexpr int kPasses = 4;  // over a block; later ones gain nothing that matters

// A finite half near the value.
std::uint16_t finite_half(double value) {
  return float_to_half(static_cast<float>(std::clamp(value, -65504.0, 65504.0)));
}

// One choice for the integers of eight groups, and the sums of the codes that follow from it.
struct Choice {
  Lanes scale{};
  Lanes minimum{};
  CodeSums sums;
  Lanes errors = all(kInfinity);
};

struct Halves {
  std::uint16_t d = 0;
  std::uint16_t dmin = 0;
};

struct Limits {
  CodeRange codes;
  CodeRange scales;
  float high_minimum;  // 0: there are none
};

// The halves that fit given integers and codes best.
template <int kGroup, std::size_t kBatches>
Halves solve_halves(const std::array<Groups<kGroup>, kBatches>& groups, const std::array<Choice, kBatches>& choices) {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
  for (std::size_t b = 0; b < kBatches; ++b) {
    const Choice& c = choices[b];
    for (std::size_t l = 0; l < kLanes; ++l) {
      const auto s = static_cast<double>(c.scale[l]), m = static_cast<double>(c.minimum[l]);
      aa += s * s * static_cast<double>(c.sums.wqq[l]);
      ab += s * m * static_cast<double>(c.sums.wq[l]);
      bb += m * m * static_cast<double>(groups[b].sw[l]);
      ax += s * static_cast<double>(c.sums.wxq[l]);
      bx += m * static_cast<double>(groups[b].swx[l]);
    }
  }
  const double determinant = aa * bb - ab * ab;
  if (determinant > 1e-9 * aa * bb && bb > 0) {
    return {finite_half((bb * ax - ab * bx) / determinant), finite_half((ab * ax - aa * bx) / determinant)};
  }
  if (aa > 0) return {finite_half(ax / aa), 0};
  return {0, bb > 0 ? finite_half(-bx / bb) : std::uint16_t{0}};
}

Fits fits_of(const Choice& choice, const Halves& halves) {
  const float d = half_to_float(halves.d), dmin = half_to_float(halves.dmin);
  Fits fits;
  for (std::size_t l = 0; l < kLanes; ++l) {
    fits.scale[l] = d * choice.scale[l];
    fits.minimum[l] = dmin * choice.minimum[l];
  }
  return fits;
}

// The whole numbers nearest to values / unit, in [low, high].
Lanes nearest_multiples(const Lanes& values, float unit, float low, float high) {
  Lanes multiples;
  for (std::size_t l = 0; l < kLanes; ++l) {
    const float ratio = select(mask_of(unit != 0.0F), values[l] / unit, 0.0F);
    multiples[l] = nearest(std::min(std::max(ratio, low), high));
  }
  return multiples;
}

// The integers of eight groups for given halves: those next to what each group alone would like.
template <int kGroup, Way kWay>
Choice choose_integers(const Groups<kGroup>& groups, const Fits& wishes, const Halves& halves, const Limits& limits) {
  const float d = half_to_float(halves.d), dmin = half_to_float(halves.dmin);
  const Lanes scales = nearest_multiples(wishes.scale, d, limits.scales.low, limits.scales.high);
  const Lanes minima = nearest_multiples(wishes.minimum, dmin, 0.0F, limits.high_minimum);
  const float wide = limits.high_minimum > 0.0F ? 1.0F : 0.0F;
  Choice best;
  for (float ds = -1.0F; ds <= 1.0F; ds += 1.0F) {
    for (float dm = -wide; dm <= wide; dm += 1.0F) {
      Choice choice;
      for (std::size_t l = 0; l < kLanes; ++l) {  // beyond the limits: the limit once more
        choice.scale[l] = std::min(std::max(scales[l] + ds, limits.scales.low), limits.scales.high);
        choice.minimum[l] = std::min(std::max(minima[l] + dm, 0.0F), limits.high_minimum);
      }
      const Fits fits = fits_of(choice, halves);
      choice.sums = sums_of<kGroup, kWay>(groups, rounding_of(fits), limits.codes);
      choice.errors = errors_of(groups, choice.sums, fits);
      for (std::size_t l = 0; l < kLanes; ++l) {
        const Mask better = mask_of(choice.errors[l] < best.errors[l]);
        const auto keep = [&](Lanes& old, const Lanes& now) { old[l] = select(better, now[l], old[l]); };
        keep(best.scale, choice.scale);
        keep(best.minimum, choice.minimum);
        keep(best.sums.wq, choice.sums.wq);
        keep(best.sums.wqq, choice.sums.wqq);
        keep(best.sums.wxq, choice.sums.wxq);
        keep(best.errors, choice.errors);
      }
    }
  }
  return best;
}

// All groups together: integers for given halves, halves for given integers, in turn, while it gets better.
template <int kGroup, Way kWay, std::size_t kBatches>
KBlock fit_block(const std::array<Groups<kGroup>, kBatches>& groups, std::array<Fits, kBatches> wishes, Halves halves,
                 const Limits& limits) {
  std::array<Choice, kBatches> best;
  Halves best_halves;
  double best_error = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < kPasses; ++pass) {
    std::array<Choice, kBatches> choices;
    double error = 0.0;
    for (std::size_t b = 0; b < kBatches; ++b) {
      choices[b] = choose_integers<kGroup, kWay>(groups[b], wishes[b], halves, limits);
      for (const float e : choices[b].errors) error += static_cast<double>(e);
    }
    if (error >= best_error) break;
    best_error = error;
    best = choices;
    best_halves = halves;
    halves = solve_halves<kGroup>(groups, choices);
    for (std::size_t b = 0; b < kBatches; ++b) wishes[b] = fits_of(best[b], best_halves);
  }

  KBlock block;
  block.d = best_halves.d;
  block.dmin = best_halves.dmin;
  for (std::size_t b = 0; b < kBatches; ++b) {
    const Roundings round = rounding_of(fits_of(best[b], best_halves));
    for (std::size_t l = 0; l < kLanes; ++l) {
      const std::size_t g = b * kLanes + l;
      block.scales[g] = static_cast<int>(best[b].scale[l]);
      block.minima[g] = static_cast<int>(best[b].minimum[l]);
      for (std::size_t i = 0; i < kGroup; ++i) {
        const float value = groups[b].x[i][l] * round.inverse[l] + round.shift[l];
        const float code = nearest(std::min(std::max(value, limits.codes.low), limits.codes.high));
        block.codes[g * kGroup + i] = static_cast<std::uint8_t>(code - limits.codes.low);
      }
    }
  }
  return block;
}

template <int kGroup, Way kWay>
KBlock affine(const float* x, const float* w, int max_code, int max_scale) {
  constexpr std::size_t kBatches = 256 / kGroup / kLanes;
  std::array<Groups<kGroup>, kBatches> groups;
  std::array<Fits, kBatches> wishes;
  float scale = 0.0F, minimum = 0.0F;
  for (std::size_t b = 0; b < kBatches; ++b) {
    const std::size_t at = b * kLanes * kGroup;
    groups[b] = gather<kGroup, kWay>(x + at, kWay.weighed ? w + at : nullptr);
    wishes[b] = search_affine<kGroup, kWay>(groups[b], max_code);
    for (const float s : wishes[b].scale) scale = std::max(scale, s);
    for (const float m : wishes[b].minimum) minimum = std::max(minimum, m);
  }
  const double most = max_scale;
  const Halves halves{finite_half(static_cast<double>(scale) / most), finite_half(static_cast<double>(minimum) / most)};
  const auto high = static_cast<float>(max_scale);
  return fit_block<kGroup, kWay>(groups, wishes, halves, {{0.0F, static_cast<float>(max_code)}, {0.0F, high}, high});
}

template <int kGroup, Way kWay>
KBlock symmetric(const float* x, const float* w, int half_range, int half_scale) {
  constexpr std::size_t kBatches = 256 / kGroup / kLanes;
  std::array<Groups<kGroup>, kBatches> groups;
  std::array<Fits, kBatches> wishes;
  float largest = 0.0F;
  for (std::size_t b = 0; b < kBatches; ++b) {
    const std::size_t at = b * kLanes * kGroup;
    groups[b] = gather<kGroup, kWay>(x + at, kWay.weighed ? w + at : nullptr);
    wishes[b] = search_symmetric<kGroup, kWay>(groups[b], half_range);
    for (const float s : wishes[b].scale) largest = std::fabs(s) > std::fabs(largest) ? s : largest;
  }
  const Halves halves{finite_half(static_cast<double>(largest) / -half_scale), 0};
  const auto codes = static_cast<float>(half_range), scales = static_cast<float>(half_scale);
  return fit_block<kGroup, kWay>(groups, wishes, halves, {{-codes, codes - 1.0F}, {-scales, scales - 1.0F}, 0.0F});
}

#ifdef LLAMA2CPP_REGISTERS_OF_EIGHT
// All that they call is compiled into them, for AVX2, and products are still rounded before they are added.
template <int kGroup, bool kWeighed>
__attribute__((target("avx2"), flatten)) KBlock affine_in_registers(const float* x, const float* w, int max_code,
                                                                    int max_scale) {
  return affine<kGroup, Way{kWeighed, true}>(x, w, max_code, max_scale);
}

template <int kGroup, bool kWeighed>
__attribute__((target("avx2"), flatten)) KBlock symmetric_in_registers(const float* x, const float* w, int half_range,
                                                                       int half_scale) {
  return symmetric<kGroup, Way{kWeighed, true}>(x, w, half_range, half_scale);
}
#endif

static_assert(std::tuple_size_v<FittedBlocks> == kLanes);

// Blocks of 32, one in each lane; where there are less than eight, zeros that weigh nothing.
Groups<32> gather_blocks(const float* x, const float* importance, std::int64_t blocks) {
  if (blocks == kLanes) return gather<32, kPlainWeighed>(x, importance);
  std::array<float, kLanes * 32> values{}, weights{};
  std::copy_n(x, blocks * 32, values.begin());
  std::copy_n(importance, blocks * 32, weights.begin());
  return gather<32, kPlainWeighed>(values.data(), weights.data());
}

// The weighed error of a block, where numbers are d * (code - offset) + minimum.
float error_of(const float* x, const float* w, const Codes32& codes, float d, float offset, float minimum) {
  Lanes sums{};
  for (std::size_t i = 0; i < 32; ++i) {
    const float error = x[i] - (d * (static_cast<float>(codes[i]) - offset) + minimum);
    sums[i % kLanes] += w[i] * (error * error);
  }
  float total = 0.0F;
  for (const float sum : sums) total += sum;
  return total;
}

float stored(float value) { return half_to_float(finite_half(static_cast<double>(value))); }

FittedBlock better_symmetric(const float* x, const float* importance, int half_range, float scale) {
  const auto half = static_cast<float>(half_range);
  FittedBlock plain{}, fitted{};
  plain.d = stored(symmetric_codes(x, half_range, plain.codes));
  fitted.d = stored(scale);
  const float inverse = finite_inverse(fitted.d);
  for (std::size_t i = 0; i < 32; ++i) {
    const float code = nearest(std::min(std::max(x[i] * inverse, -half), half - 1.0F));
    fitted.codes[i] = static_cast<std::uint32_t>(static_cast<int>(code) + half_range);
  }
  const float error = error_of(x, importance, fitted.codes, fitted.d, half, 0.0F);
  return error < error_of(x, importance, plain.codes, plain.d, half, 0.0F) ? fitted : plain;
}

FittedBlock better_affine(const float* x, const float* importance, int max_code, float scale, float minimum) {
  FittedBlock plain{}, fitted{};
  const Affine given = affine_codes(x, max_code, plain.codes);
  plain.d = stored(given.d);
  plain.minimum = stored(given.minimum);
  fitted.d = stored(scale);
  fitted.minimum = stored(minimum);
  const float inverse = finite_inverse(fitted.d);
  const auto top = static_cast<float>(max_code);
  for (std::size_t i = 0; i < 32; ++i) {
    const float code = nearest(std::min(std::max(x[i] * inverse - fitted.minimum * inverse, 0.0F), top));
    fitted.codes[i] = static_cast<std::uint32_t>(code);
  }
  const float error = error_of(x, importance, fitted.codes, fitted.d, 0.0F, fitted.minimum);
  return error < error_of(x, importance, plain.codes, plain.d, 0.0F, plain.minimum) ? fitted : plain;
}

}  // namespace

void fit_symmetric_codes(const float* x, const float* importance, std::int64_t blocks, int half_range,
                         FittedBlocks& out) {
  const Fits fits = search_symmetric<32, kPlainWeighed>(gather_blocks(x, importance, blocks), half_range);
  for (std::size_t b = 0; b < static_cast<std::size_t>(blocks); ++b) {
    out[b] = better_symmetric(x + b * 32, importance + b * 32, half_range, fits.scale[b]);
  }
}

void fit_affine_codes(const float* x, const float* importance, std::int64_t blocks, int max_code, FittedBlocks& out) {
  const Fits fits = search_affine<32, kPlainWeighed>(gather_blocks(x, importance, blocks), max_code);
  for (std::size_t b = 0; b < static_cast<std::size_t>(blocks); ++b) {
    out[b] = better_affine(x + b * 32, importance + b * 32, max_code, fits.scale[b], -fits.minimum[b]);
  }
}

bool fits_in_registers() {
#ifdef LLAMA2CPP_REGISTERS_OF_EIGHT
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  return has_avx2;
#else
  return false;
#endif
}

template <int kGroup>
KBlock fit_affine(const float* x, const float* importance, int max_code, int max_scale, bool in_registers) {
  const bool weighed = importance != nullptr;
#ifdef LLAMA2CPP_REGISTERS_OF_EIGHT
  if (in_registers) {
    return weighed ? affine_in_registers<kGroup, true>(x, importance, max_code, max_scale)
                   : affine_in_registers<kGroup, false>(x, nullptr, max_code, max_scale);
  }
#else
  static_cast<void>(in_registers);
#endif
  return weighed ? affine<kGroup, Way{true, false}>(x, importance, max_code, max_scale)
                 : affine<kGroup, Way{false, false}>(x, nullptr, max_code, max_scale);
}

template <int kGroup>
KBlock fit_symmetric(const float* x, const float* importance, int half_range, int half_scale, bool in_registers) {
  const bool weighed = importance != nullptr;
#ifdef LLAMA2CPP_REGISTERS_OF_EIGHT
  if (in_registers) {
    return weighed ? symmetric_in_registers<kGroup, true>(x, importance, half_range, half_scale)
                   : symmetric_in_registers<kGroup, false>(x, nullptr, half_range, half_scale);
  }
#else
  static_cast<void>(in_registers);
#endif
  return weighed ? symmetric<kGroup, Way{true, false}>(x, importance, half_range, half_scale)
                 : symmetric<kGroup, Way{false, false}>(x, nullptr, half_range, half_scale);
}

template KBlock fit_affine<16>(const float*, const float*, int, int, bool);
template KBlock fit_affine<32>(const float*, const float*, int, int, bool);
template KBlock fit_symmetric<16>(const float*, const float*, int, int, bool);

}  // namespace llama2cpp
