// Coordinate descent: codes for given scales by rounding, scales for given codes by least squares, in turn. Sums run over
// eight lanes, so that compilers use vectors without being allowed to reorder.
#include "format/k_fit.h"

#include <limits>

namespace llama2cpp {
namespace {

constexpr int kLanes = 8;
constexpr int kPasses = 4;  // over a block; later ones gain nothing that matters

// To nearest even for |x| < 2^22, in the default rounding mode.
inline float nearest(float x) {
  constexpr float kShift = 12'582'912.0F;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

// Of one group, whatever its codes: w is the importance.
struct Moments {
  float w = 0.0F;
  float wx = 0.0F;
  float wxx = 0.0F;
};

// Of one group's codes q.
struct CodeSums {
  float wq = 0.0F;
  float wqq = 0.0F;
  float wxq = 0.0F;
};

float total(const std::array<float, kLanes>& lanes) {
  float sum = 0.0F;
  for (const float lane : lanes) sum += lane;
  return sum;
}

template <int kGroup>
Moments moments_of(const float* x, const float* w) {
  std::array<float, kLanes> sw{}, swx{}, swxx{};
  for (int i = 0; i < kGroup; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto l = static_cast<std::size_t>(lane);
      const float wx = w[i + lane] * x[i + lane];
      sw[l] += w[i + lane];
      swx[l] += wx;
      swxx[l] += wx * x[i + lane];
    }
  }
  return {total(sw), total(swx), total(swxx)};
}

// How a value becomes a code: q = x * inverse + shift, rounded, in [low, high].
struct Rounding {
  float inverse;
  float shift;
  float low;
  float high;

  float operator()(float x) const { return nearest(std::min(std::max(x * inverse + shift, low), high)); }
};

template <int kGroup>
CodeSums sums_of(const float* x, const float* w, const Rounding& round) {
  std::array<float, kLanes> swq{}, swqq{}, swxq{};
  for (int i = 0; i < kGroup; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const auto l = static_cast<std::size_t>(lane);
      const float q = round(x[i + lane]);
      const float wq = w[i + lane] * q;
      swq[l] += wq;
      swqq[l] += wq * q;
      swxq[l] += wq * x[i + lane];
    }
  }
  return {total(swq), total(swqq), total(swxq)};
}

// x is near scale * q - minimum.
struct Fit {
  float scale = 0.0F;
  float minimum = 0.0F;
};

float error_of(const Moments& m, const CodeSums& q, const Fit& fit) {
  const float s = fit.scale, c = fit.minimum;
  return m.wxx + s * (s * q.wqq - 2.0F * q.wxq) + c * (c * m.w + 2.0F * m.wx - 2.0F * s * q.wq);
}

// The best scale of 0 or more and minimum of 0 or more.
Fit solve_affine(const Moments& m, const CodeSums& q) {
  const float determinant = m.w * q.wqq - q.wq * q.wq;
  if (determinant > 0.0F) {
    const Fit fit{(m.w * q.wxq - m.wx * q.wq) / determinant, (q.wq * q.wxq - q.wqq * m.wx) / determinant};
    if (fit.minimum >= 0.0F && fit.scale >= 0.0F) return fit;
  }
  if (q.wqq > 0.0F && q.wxq > 0.0F) return {q.wxq / q.wqq, 0.0F};
  return {0.0F, m.w > 0.0F ? std::max(0.0F, -m.wx / m.w) : 0.0F};
}

Rounding rounding_of(const Fit& fit, float low, float high) {
  const float inverse = inverse_of(fit.scale);
  return {inverse, fit.minimum * inverse, low, high};
}

// One group alone: starts from ranges a little narrower and wider than the values', and goes to the minimum near each.
template <int kGroup>
Fit search_affine(const float* x, const float* w, const Moments& m, int max_code) {
  const auto [least, largest] = std::minmax_element(x, x + kGroup);
  const float low = std::min(*least, 0.0F);
  const float range = *largest - low;
  if (!(range > 0.0F)) return {0.0F, -low};
  const auto top = static_cast<float>(max_code);
  Fit best;
  float best_error = std::numeric_limits<float>::infinity();
  for (int step = -8; step <= 12; step += 2) {
    const float inverse = (top + 0.1F * static_cast<float>(step)) / range;
    Rounding round{inverse, -low * inverse, 0.0F, top};
    for (int turn = 0; turn < 2; ++turn) {
      const CodeSums sums = sums_of<kGroup>(x, w, round);
      const Fit fit = solve_affine(m, sums);
      const float error = error_of(m, sums, fit);
      if (error < best_error) {
        best_error = error;
        best = fit;
      }
      round = rounding_of(fit, 0.0F, top);
    }
  }
  return best;
}

template <int kGroup>
Fit search_symmetric(const float* x, const float* w, const Moments& m, int half_range) {
  float largest = 0.0F;
  for (int i = 0; i < kGroup; ++i) {
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  }
  if (largest == 0.0F) return {};
  const auto half = static_cast<float>(half_range);
  Fit best;
  float best_error = std::numeric_limits<float>::infinity();
  for (int step = -12; step <= 8; step += 2) {
    const float inverse = -(half + 0.1F * static_cast<float>(step)) / largest;
    Rounding round{inverse, 0.0F, -half, half - 1.0F};
    for (int turn = 0; turn < 2; ++turn) {
      const CodeSums sums = sums_of<kGroup>(x, w, round);
      if (!(sums.wqq > 0.0F)) break;
      const Fit fit{sums.wxq / sums.wqq, 0.0F};
      const float error = error_of(m, sums, fit);
      if (error < best_error) {
        best_error = error;
        best = fit;
      }
      round = rounding_of(fit, -half, half - 1.0F);
    }
  }
  return best;
}

// A finite half near the value.
std::uint16_t finite_half(double value) {
  return float_to_half(static_cast<float>(std::clamp(value, -65504.0, 65504.0)));
}

// One choice for a block's integers, and the sums of the codes that follow from it.
struct Choice {
  std::array<int, 16> scales{};
  std::array<int, 16> minima{};
  std::array<CodeSums, 16> sums{};
  double error = std::numeric_limits<double>::infinity();
};

struct Halves {
  std::uint16_t d = 0;
  std::uint16_t dmin = 0;
};

// The halves that fit given integers and codes best.
Halves solve_halves(const std::array<Moments, 16>& moments, const Choice& c, std::size_t groups) {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
  for (std::size_t g = 0; g < groups; ++g) {
    const double s = c.scales[g], m = c.minima[g];
    aa += s * s * static_cast<double>(c.sums[g].wqq);
    ab += s * m * static_cast<double>(c.sums[g].wq);
    bb += m * m * static_cast<double>(moments[g].w);
    ax += s * static_cast<double>(c.sums[g].wxq);
    bx += m * static_cast<double>(moments[g].wx);
  }
  const double determinant = aa * bb - ab * ab;
  if (determinant > 1e-9 * aa * bb && bb > 0) {
    return {finite_half((bb * ax - ab * bx) / determinant), finite_half((ab * ax - aa * bx) / determinant)};
  }
  if (aa > 0) return {finite_half(ax / aa), 0};
  return {0, bb > 0 ? finite_half(-bx / bb) : std::uint16_t{0}};
}

struct Limits {
  int low_code;
  int high_code;
  int low_scale;
  int high_scale;
  int high_minimum;  // 0: there are none
};

// The integers of one group for given halves: those next to what the group alone would like.
template <int kGroup>
void choose_integers(const float* x, const float* w, const Moments& m, const Fit& wish, const Halves& halves,
                     const Limits& limits, std::size_t g, Choice& choice) {
  const float d = half_to_float(halves.d), dmin = half_to_float(halves.dmin);
  const auto low = static_cast<float>(limits.low_code), high = static_cast<float>(limits.high_code);
  const auto middle = [](float value, float unit, int least, int most) {
    const float ratio = unit == 0.0F ? 0.0F : value / unit;
    return static_cast<int>(std::clamp(std::nearbyint(ratio), static_cast<float>(least), static_cast<float>(most)));
  };
  const int scale = middle(wish.scale, d, limits.low_scale, limits.high_scale);
  const int minimum = middle(wish.minimum, dmin, 0, limits.high_minimum);
  float best = std::numeric_limits<float>::infinity();
  for (int s = std::max(scale - 1, limits.low_scale); s <= std::min(scale + 1, limits.high_scale); ++s) {
    for (int c = std::max(minimum - 1, 0); c <= std::min(minimum + 1, limits.high_minimum); ++c) {
      const Fit fit{d * static_cast<float>(s), dmin * static_cast<float>(c)};
      const CodeSums sums = sums_of<kGroup>(x, w, rounding_of(fit, low, high));
      const float error = error_of(m, sums, fit);
      if (error >= best) continue;
      best = error;
      choice.scales[g] = s;
      choice.minima[g] = c;
      choice.sums[g] = sums;
    }
  }
  choice.error += static_cast<double>(best);
}

// All groups together: integers for given halves, halves for given integers, in turn, while it gets better.
template <int kGroup>
KBlock fit_block(const float* x, const float* w, const std::array<Moments, 16>& moments, std::array<Fit, 16> wishes,
                 Halves halves, const Limits& limits) {
  constexpr std::size_t kGroups = 256 / kGroup;
  Choice best;
  Halves best_halves;
  for (int pass = 0; pass < kPasses; ++pass) {
    Choice choice;
    choice.error = 0.0;
    for (std::size_t g = 0; g < kGroups; ++g) {
      const std::size_t at = g * kGroup;
      choose_integers<kGroup>(x + at, w + at, moments[g], wishes[g], halves, limits, g, choice);
    }
    if (choice.error >= best.error) break;
    best = choice;
    best_halves = halves;
    halves = solve_halves(moments, choice, kGroups);
    for (std::size_t g = 0; g < kGroups; ++g) {  // from here on, what is near is what was chosen
      wishes[g] = {half_to_float(best_halves.d) * static_cast<float>(choice.scales[g]),
                   half_to_float(best_halves.dmin) * static_cast<float>(choice.minima[g])};
    }
  }

  KBlock block{best_halves.d, best_halves.dmin, best.scales, best.minima, {}};
  for (std::size_t g = 0; g < kGroups; ++g) {
    const Fit fit{half_to_float(block.d) * static_cast<float>(block.scales[g]),
                  half_to_float(block.dmin) * static_cast<float>(block.minima[g])};
    const Rounding round = rounding_of(fit, static_cast<float>(limits.low_code), static_cast<float>(limits.high_code));
    for (std::size_t k = g * kGroup; k < (g + 1) * kGroup; ++k) {
      block.codes[k] = static_cast<std::uint8_t>(static_cast<int>(round(x[k])) - limits.low_code);
    }
  }
  return block;
}

constexpr std::array<float, 256> kAllAlike = [] {
  std::array<float, 256> ones{};
  ones.fill(1.0F);
  return ones;
}();

// The weighed error of a block of 32 alone, whose numbers are d * (code - offset) + minimum.
float error_of(const float* x, const float* w, const Codes32& codes, float d, float offset, float minimum) {
  std::array<float, kLanes> sums{};
  for (std::size_t i = 0; i < 32; ++i) {
    const float error = x[i] - (d * (static_cast<float>(codes[i]) - offset) + minimum);
    sums[i % kLanes] += w[i] * (error * error);
  }
  return total(sums);
}

float stored(float value) { return half_to_float(finite_half(static_cast<double>(value))); }

}  // namespace

float fitted_symmetric_codes(const float* x, const float* importance, int half_range, Codes32& codes) {
  const auto half = static_cast<float>(half_range);
  const float plain = stored(symmetric_codes(x, half_range, codes));
  const Fit fit = search_symmetric<32>(x, importance, moments_of<32>(x, importance), half_range);
  const float d = stored(fit.scale);
  const Rounding round{inverse_of(d), 0.0F, -half, half - 1.0F};
  Codes32 fitted;
  for (std::size_t i = 0; i < 32; ++i)
    fitted[i] = static_cast<std::uint32_t>(static_cast<int>(round(x[i])) + half_range);
  if (!(error_of(x, importance, fitted, d, half, 0.0F) < error_of(x, importance, codes, plain, half, 0.0F)))
    return plain;
  codes = fitted;
  return d;
}

Affine fitted_affine_codes(const float* x, const float* importance, int max_code, Codes32& codes) {
  const Affine given = affine_codes(x, max_code, codes);
  const Affine plain{stored(given.d), stored(given.minimum)};
  const Fit fit = search_affine<32>(x, importance, moments_of<32>(x, importance), max_code);
  const Affine better{stored(fit.scale), stored(-fit.minimum)};
  const Rounding round = rounding_of({better.d, -better.minimum}, 0.0F, static_cast<float>(max_code));
  Codes32 fitted;
  for (std::size_t i = 0; i < 32; ++i) fitted[i] = static_cast<std::uint32_t>(round(x[i]));
  const float error = error_of(x, importance, fitted, better.d, 0.0F, better.minimum);
  if (!(error < error_of(x, importance, codes, plain.d, 0.0F, plain.minimum))) return plain;
  codes = fitted;
  return better;
}

template <int kGroup>
KBlock fit_affine(const float* x, const float* importance, int max_code, int max_scale) {
  const float* const w = importance == nullptr ? kAllAlike.data() : importance;
  std::array<Moments, 16> moments;
  std::array<Fit, 16> wishes;
  Fit largest;
  for (std::size_t g = 0; g < 256 / kGroup; ++g) {
    const std::size_t at = g * kGroup;
    moments[g] = moments_of<kGroup>(x + at, w + at);
    wishes[g] = search_affine<kGroup>(x + at, w + at, moments[g], max_code);
    largest.scale = std::max(largest.scale, wishes[g].scale);
    largest.minimum = std::max(largest.minimum, wishes[g].minimum);
  }
  const double most = max_scale;
  const Halves halves{finite_half(static_cast<double>(largest.scale) / most),
                      finite_half(static_cast<double>(largest.minimum) / most)};
  return fit_block<kGroup>(x, w, moments, wishes, halves, {0, max_code, 0, max_scale, max_scale});
}

template <int kGroup>
KBlock fit_symmetric(const float* x, const float* importance, int half_range, int half_scale) {
  const float* const w = importance == nullptr ? kAllAlike.data() : importance;
  std::array<Moments, 16> moments;
  std::array<Fit, 16> wishes;
  float largest = 0.0F;
  for (std::size_t g = 0; g < 256 / kGroup; ++g) {
    const std::size_t at = g * kGroup;
    moments[g] = moments_of<kGroup>(x + at, w + at);
    wishes[g] = search_symmetric<kGroup>(x + at, w + at, moments[g], half_range);
    if (std::fabs(wishes[g].scale) > std::fabs(largest)) largest = wishes[g].scale;
  }
  const Halves halves{finite_half(static_cast<double>(largest) / -half_scale), 0};
  return fit_block<kGroup>(x, w, moments, wishes, halves,
                           {-half_range, half_range - 1, -half_scale, half_scale - 1, 0});
}

template KBlock fit_affine<16>(const float*, const float*, int, int);
template KBlock fit_affine<32>(const float*, const float*, int, int);
template KBlock fit_symmetric<16>(const float*, const float*, int, int);

}  // namespace llama2cpp
