// What the search of k_fit.cpp does with groups alone: codes for given scales by rounding, scales for given codes by least
// squares, in turn. Eight groups go side by side, one in each lane of an array: every loop over lanes is the same arithmetic
// on eight groups, without branches, which compilers make vectors of without being allowed to reorder a sum.
#pragma once

#include <algorithm>
#include <bit>
#include <limits>

#include "format/encode.h"

namespace llama2cpp {

inline constexpr std::size_t kLanes = 8;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Lanes = std::array<float, kLanes>;

// How groups are summed up: each number by its importance or all alike, and by loops over lanes or by registers of eight,
// which is the same arithmetic. Without AVX2 registers of eight would be slower than the loops.
struct Way {
  bool weighed;
  bool in_registers;
};
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LLAMA2CPP_REGISTERS_OF_EIGHT 1
using Eight = float __attribute__((vector_size(32), aligned(4), may_alias));
#endif

// To nearest even for |x| < 2^22, in the default rounding mode.
inline float nearest(float x) {
  constexpr float kShift = 12'582'912.0F;  // 1.5 * 2^23
  return (x + kShift) - kShift;
}

// A condition as 32 bits, so that it can be data: compilers would make a branch of `?:` around a division.
using Mask = std::uint32_t;

inline Mask mask_of(bool condition) { return condition ? ~Mask{0} : Mask{0}; }

inline float select(Mask mask, float yes, float no) {
  return std::bit_cast<float>((std::bit_cast<Mask>(yes) & mask) | (std::bit_cast<Mask>(no) & ~mask));
}

// inverse_of without branches.
inline float finite_inverse(float scale) {
  const float inverse = 1.0F / scale;
  return select(mask_of(std::fabs(inverse) <= std::numeric_limits<float>::max()), inverse, 0.0F);
}

// Eight groups, whatever their codes: column i of each at [i], and sums over it. w is the importance.
template <int kGroup>
struct Groups {
  std::array<Lanes, kGroup> x;
  std::array<Lanes, kGroup> w;  // filled where it is not 1
  Lanes sw{};
  Lanes swx{};
  Lanes swxx{};
};

template <int kGroup, Way kWay>
Groups<kGroup> gather(const float* x, const float* w) {
  Groups<kGroup> groups;
  for (std::size_t i = 0; i < kGroup; ++i) {
    for (std::size_t l = 0; l < kLanes; ++l) {
      groups.x[i][l] = x[l * kGroup + i];
      if constexpr (kWay.weighed) groups.w[i][l] = w[l * kGroup + i];
    }
  }
  for (std::size_t i = 0; i < kGroup; ++i) {
    for (std::size_t l = 0; l < kLanes; ++l) {
      const float weight = kWay.weighed ? groups.w[i][l] : 1.0F;
      const float wx = weight * groups.x[i][l];
      groups.sw[l] += weight;
      groups.swx[l] += wx;
      groups.swxx[l] += wx * groups.x[i][l];
    }
  }
  return groups;
}

struct CodeRange {
  float low;
  float high;
};

// x is near scale * q - minimum, for each group.
struct Fits {
  Lanes scale{};
  Lanes minimum{};
};

// How values become codes: q = x * inverse + shift, rounded, within the range.
struct Roundings {
  Lanes inverse;
  Lanes shift;
};

// Of the codes q of each group.
struct CodeSums {
  Lanes wq{};
  Lanes wqq{};
  Lanes wxq{};
};

#ifdef LLAMA2CPP_REGISTERS_OF_EIGHT
template <int kGroup, Way kWay>
void sum_in_registers(const Groups<kGroup>& groups, const Roundings& round, const CodeRange& range, CodeSums& sums) {
  constexpr float kShift = 12'582'912.0F;  // see nearest()
  const auto in_register = [](const Lanes& lanes) __attribute__((always_inline)) {
    return reinterpret_cast<const Eight*>(lanes.data());
  };
  const Eight inverse = *in_register(round.inverse), shift = *in_register(round.shift);
  const Eight low = Eight{} + range.low, high = Eight{} + range.high;
  Eight swq{}, swqq{}, swxq{};
  for (std::size_t i = 0; i < kGroup; ++i) {
    const Eight x = *in_register(groups.x[i]);
    const Eight value = x * inverse + shift;
    const Eight above = value < low ? low : value;
    const Eight within = high < above ? high : above;
    const Eight q = (within + kShift) - kShift;
    Eight wq = q;
    if constexpr (kWay.weighed) wq *= *in_register(groups.w[i]);
    swq += wq;
    swqq += wq * q;
    swxq += wq * x;
  }
  *reinterpret_cast<Eight*>(sums.wq.data()) = swq;
  *reinterpret_cast<Eight*>(sums.wqq.data()) = swqq;
  *reinterpret_cast<Eight*>(sums.wxq.data()) = swxq;
}
#endif

template <int kGroup, Way kWay>
CodeSums sums_of(const Groups<kGroup>& groups, const Roundings& round, const CodeRange& range) {
  CodeSums sums;
#ifdef LLAMA2CPP_REGISTERS_OF_EIGHT
  if constexpr (kWay.in_registers) {
    sum_in_registers<kGroup, kWay>(groups, round, range, sums);
    return sums;
  }
#endif
  for (std::size_t l = 0; l < kLanes; ++l) {  // outside, so that the sums stay in registers
    const float inverse = round.inverse[l], shift = round.shift[l];
    float swq = 0.0F, swqq = 0.0F, swxq = 0.0F;
    for (std::size_t i = 0; i < kGroup; ++i) {
      const float x = groups.x[i][l];
      const float q = nearest(std::min(std::max(x * inverse + shift, range.low), range.high));
      const float wq = kWay.weighed ? groups.w[i][l] * q : q;
      swq += wq;
      swqq += wq * q;
      swxq += wq * x;
    }
    sums.wq[l] = swq;
    sums.wqq[l] = swqq;
    sums.wxq[l] = swxq;
  }
  return sums;
}

inline Roundings rounding_of(const Fits& fits) {
  Roundings round;
  for (std::size_t l = 0; l < kLanes; ++l) {
    round.inverse[l] = finite_inverse(fits.scale[l]);
    round.shift[l] = fits.minimum[l] * round.inverse[l];
  }
  return round;
}

template <int kGroup>
Lanes errors_of(const Groups<kGroup>& g, const CodeSums& q, const Fits& fits) {
  Lanes errors;
  for (std::size_t l = 0; l < kLanes; ++l) {
    const float s = fits.scale[l], c = fits.minimum[l];
    errors[l] =
        g.swxx[l] + s * (s * q.wqq[l] - 2.0F * q.wxq[l]) + c * (c * g.sw[l] + 2.0F * g.swx[l] - 2.0F * s * q.wq[l]);
  }
  return errors;
}

// The best scales of 0 or more and minima of 0 or more.
template <int kGroup>
Fits solve_affine(const Groups<kGroup>& g, const CodeSums& q) {
  Fits fits;
  for (std::size_t l = 0; l < kLanes; ++l) {
    const float w = g.sw[l], wx = g.swx[l], wq = q.wq[l], wqq = q.wqq[l], wxq = q.wxq[l];
    const float determinant = w * wqq - wq * wq;
    const float scale = (w * wxq - wx * wq) / determinant;
    const float minimum = (wq * wxq - wqq * wx) / determinant;
    const float scale_alone = wxq / wqq;                  // where there is no minimum
    const float minimum_alone = std::max(0.0F, -wx / w);  // where there is no scale
    const Mask both = mask_of(determinant > 0.0F) & mask_of(minimum >= 0.0F) & mask_of(scale >= 0.0F);
    const Mask no_minimum = mask_of(wqq > 0.0F) & mask_of(wxq > 0.0F);
    fits.scale[l] = select(both, scale, select(no_minimum, scale_alone, 0.0F));
    fits.minimum[l] = select(both, minimum, select(~no_minimum & mask_of(w > 0.0F), minimum_alone, 0.0F));
  }
  return fits;
}

inline void keep_better(const Fits& fits, const Lanes& errors, Fits& best, Lanes& best_errors) {
  for (std::size_t l = 0; l < kLanes; ++l) {
    const Mask better = mask_of(errors[l] < best_errors[l]);
    best.scale[l] = select(better, fits.scale[l], best.scale[l]);
    best.minimum[l] = select(better, fits.minimum[l], best.minimum[l]);
    best_errors[l] = select(better, errors[l], best_errors[l]);
  }
}

constexpr Lanes all(float value) {
  Lanes lanes{};
  lanes.fill(value);
  return lanes;
}

// Each group alone: starts from ranges a little narrower and wider than the values', and goes to the minimum near each.
template <int kGroup, Way kWay>
Fits search_affine(const Groups<kGroup>& groups, int max_code) {
  const auto top = static_cast<float>(max_code);
  Lanes low{}, high = groups.x[0];
  for (const Lanes& x : groups.x) {
    for (std::size_t l = 0; l < kLanes; ++l) {
      low[l] = std::min(low[l], x[l]);
      high[l] = std::max(high[l], x[l]);
    }
  }
  Fits best;
  Lanes best_errors = all(kInfinity);
  for (int step = -8; step <= 12; step += 2) {
    Roundings round;
    for (std::size_t l = 0; l < kLanes; ++l) {
      round.inverse[l] = (top + 0.1F * static_cast<float>(step)) / (high[l] - low[l]);
      round.shift[l] = -low[l] * round.inverse[l];
    }
    for (int turn = 0; turn < 2; ++turn) {
      const CodeSums sums = sums_of<kGroup, kWay>(groups, round, {0.0F, top});
      const Fits fits = solve_affine(groups, sums);
      keep_better(fits, errors_of(groups, sums, fits), best, best_errors);
      round = rounding_of(fits);
    }
  }
  for (std::size_t l = 0; l < kLanes; ++l) {
    const Mask varied = mask_of(high[l] - low[l] > 0.0F);
    best.scale[l] = select(varied, best.scale[l], 0.0F);
    best.minimum[l] = select(varied, best.minimum[l], -low[l]);
  }
  return best;
}

template <int kGroup, Way kWay>
Fits search_symmetric(const Groups<kGroup>& groups, int half_range) {
  const auto half = static_cast<float>(half_range);
  Lanes largest{};
  for (const Lanes& x : groups.x) {
    for (std::size_t l = 0; l < kLanes; ++l) {
      largest[l] = select(mask_of(std::fabs(x[l]) > std::fabs(largest[l])), x[l], largest[l]);
    }
  }
  Fits best;
  Lanes best_errors = all(kInfinity);
  for (int step = -12; step <= 8; step += 2) {
    Roundings round{.inverse = {}, .shift = {}};
    for (std::size_t l = 0; l < kLanes; ++l) {
      round.inverse[l] = -(half + 0.1F * static_cast<float>(step)) / largest[l];
    }
    for (int turn = 0; turn < 2; ++turn) {
      const CodeSums sums = sums_of<kGroup, kWay>(groups, round, {-half, half - 1.0F});
      Fits fits;
      for (std::size_t l = 0; l < kLanes; ++l) {
        const float scale = sums.wxq[l] / sums.wqq[l];
        fits.scale[l] = select(mask_of(sums.wqq[l] > 0.0F), scale, 0.0F);
      }
      keep_better(fits, errors_of(groups, sums, fits), best, best_errors);
      round = rounding_of(fits);
    }
  }
  return best;
}

}  // namespace llama2cpp
