// The specification of the CPU's arithmetic: plain loops, meant to be read. Every SIMD kernel gives these bits, whatever
// its width. Kept apart from the kernels' templates on purpose: a mistake there must not be a mistake here.
//
// A sum inside one vector uses 16 virtual lanes. Lane j takes elements j, j + 16, ... in order; the vector counts as
// padded with zeros to a multiple of 16; the lanes are then added by halves: j and j + 8, j and j + 4, ...
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "backend/cpu/kernel_table.h"
#include "backend/cpu/llama2c_reference.h"
#include "backend/cpu/reference_blocks.h"
#include "backend/cpu/reference_llm_int8.h"
#include "core/half.h"
#include "format/bf16.h"

namespace llama2cpp {
namespace {

constexpr std::int64_t kLanes = 16;

std::int64_t padded(std::int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

float sum_of_lanes(const float* lanes) {
  float sums[kLanes];
  std::memcpy(sums, lanes, sizeof(sums));
  for (int half = 8; half >= 1; half /= 2) {
    for (int j = 0; j < half; ++j) sums[j] = sums[j] + sums[j + half];
  }
  return sums[0];
}

// e^x = (1 + q r) 2^n for -87 <= x <= 0. x = n ln 2 + r with |r| <= ln 2 / 2, and 1 + q r is e^r's Taylor polynomial of
// degree 7 (its error there is 5e-9, below a rounding).
struct Exponential {
  float r, q;
  int n;

  explicit Exponential(float x) {
    constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, to nearest even
    const float whole = std::fma(x, 1.44269504F, kRound) - kRound;
    n = static_cast<int>(whole);
    r = std::fma(whole, -0.693145752F, x);  // ln 2 in two parts: the first has zeros at its end, so n * it is exact
    r = std::fma(whole, -1.42860677e-6F, r);
    q = 1.0F / 5040.0F;
    for (const float c : {1.0F / 720.0F, 1.0F / 120.0F, 1.0F / 24.0F, 1.0F / 6.0F, 0.5F, 1.0F}) q = std::fma(q, r, c);
  }
};

// e^x for x <= 0. Results below the least normal number are 0.
float exp_nonpositive(float x) {
  if (std::isnan(x)) return x;
  if (x < -87.0F) return 0.0F;
  const Exponential e(x);
  return std::ldexp(std::fma(e.q, e.r, 1.0F), e.n);
}

// e^x - 1 for x <= 0: (2^n - 1) + 2^n q r, so that nothing cancels near 0, where n is 0.
float exp_nonpositive_less_1(float x) {
  if (std::isnan(x)) return x;
  if (x < -87.0F) return -1.0F;
  const Exponential e(x);
  const float power = std::ldexp(1.0F, e.n);
  return std::fma(e.q * power, e.r, power - 1.0F);
}

// tanh(|x|) = -m / (2 + m) with m = e^-2|x| - 1
float tanh_of(float x) {
  if (std::isnan(x) || x == 0.0F) return x;
  const float m = exp_nonpositive_less_1(-std::fabs(x + x));
  const float size = -m / (2.0F + m);
  return x < 0.0F ? -size : size;
}

// 1 / (1 + e^-x), written with e^-|x| so that nothing overflows.
float sigmoid(float x) {
  const float e = exp_nonpositive(-std::fabs(x));
  const float numerator = x >= 0.0F ? 1.0F : e;
  return numerator / (1.0F + e);
}

// GELU is x times the normal distribution's integral up to x. The tanh that approximates it, (1 + tanh(y / 2)) / 2, is
// sigmoid(y), y = 2 sqrt(2 / pi) (x + 0.044715 x^3), and nothing is lost where tanh is almost -1.
float gelu_tanh(float x) {
  const float slope = std::fma(x * x, 0.0713548163F, 1.59576912F);
  return x * sigmoid(x * slope);
}

float relu_squared(float x) {
  const float positive = x < 0.0F ? 0.0F : x;  // a NaN stays
  return positive * positive;
}

float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return x * sigmoid(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::relu_squared:
      return relu_squared(x);
    case Activation::clamped_swiglu:
      break;  // of two numbers
  }
  return x;
}

// A NaN stays.
float clamped_swiglu(float gate, float up) {
  const float g = gate > 7.0F ? 7.0F : gate;
  const float u = up > 7.0F ? 7.0F : up < -7.0F ? -7.0F : up;
  return (u + 1.0F) * (g * sigmoid(1.702F * g));
}

float widen(float value) { return value; }
float widen(std::uint16_t value) { return half_to_float(value); }

constexpr float kLeastNormal = 0x1p-126F;

float flushed(float x) { return std::fabs(x) < kLeastNormal ? std::copysign(0.0F, x) : x; }

// a * b + c with denormals as zeros, in and out. Whether a result is one is judged once it is rounded to 24 bits as if
// exponents had no end, so what rounds up to the least normal number is that number. In double, 53 bits tell the two apart:
// a and b have 8 bits each.
float fma_flushed(float a, float b, float c) {
  a = flushed(a);
  b = flushed(b);
  c = flushed(c);
  const float r = std::fma(a, b, c);
  if (!(std::fabs(r) <= kLeastNormal)) return r;
  const double exact = std::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
  return std::copysign(std::fabs(exact) < 0x1p-126 - 0x1p-151 ? 0.0F : kLeastNormal, r);
}

// A word is two numbers: the one of odd k comes first, then the one of even k.
void matmul_pairs(const PairBlock& b) {
  const auto odd = [](std::uint32_t word) { return bf16_to_float(static_cast<std::uint16_t>(word >> 16)); };
  const auto even = [](std::uint32_t word) { return bf16_to_float(static_cast<std::uint16_t>(word)); };
  for (std::int64_t t = 0; t < b.n_tokens; ++t) {
    for (std::int64_t panel = 0; panel < b.n_panels; ++panel) {
      const std::int64_t rows = panel + 1 == b.n_panels ? b.last_rows : kPanelRows;
      for (std::int64_t row = 0; row < rows; ++row) {
        float& out = b.out[t * b.out_stride + panel * kPanelRows + row];
        float p = b.first ? 0.0F : out;
        for (std::int64_t k = 0; k < b.n_k; ++k) {
          const std::uint32_t w = b.panels[panel * b.panel_stride + k * kPanelRows + row];
          const std::uint32_t x = b.x[k * b.n_tokens + t];
          p = fma_flushed(odd(w), odd(x), p);
          p = fma_flushed(even(w), even(x), p);
        }
        out = p;
      }
    }
  }
}

template <class W, float (*kWiden)(W)>
void matmul_float(const PanelBlockOf<W>& b) {
  for (std::int64_t t = 0; t < b.n_tokens; ++t) {
    for (std::int64_t panel = 0; panel < b.n_panels; ++panel) {
      const std::int64_t rows = panel + 1 == b.n_panels ? b.last_rows : kPanelRows;
      for (std::int64_t row = 0; row < rows; ++row) {
        float& out = b.out[t * b.out_stride + panel * kPanelRows + row];
        float sum = b.first ? 0.0F : out;
        for (std::int64_t begin = 0; begin < b.n_k; begin += kBlock) {
          float p = 0.0F;
          for (std::int64_t k = begin; k < b.n_k && k < begin + kBlock; ++k) {
            const float w = kWiden(b.panels[panel * b.panel_stride + k * kPanelRows + row]);
            p = std::fma(w, b.x[k * b.n_tokens + t], p);
          }
          sum = sum + p;
        }
        out = sum;
      }
    }
  }
}

// An exact integer sum for each group; then the groups in order, scaled as llama2.c's runq scales them.
void matmul_int8(const Int8Block& b) {
  const std::int64_t group_bytes = b.quads * 4 * kPanelRows + kPanelRows * std::int64_t{sizeof(float)};
  for (std::int64_t t = 0; t < b.n_tokens; ++t) {
    for (std::int64_t panel = 0; panel < b.n_panels; ++panel) {
      const std::int64_t rows = panel + 1 == b.n_panels ? b.last_rows : kPanelRows;
      for (std::int64_t row = 0; row < rows; ++row) {
        float& out = b.out[t * b.out_stride + panel * kPanelRows + row];
        float p = b.first ? 0.0F : out;
        for (std::int64_t group = 0; group < b.groups; ++group) {
          const std::uint8_t* weights = b.panels + panel * b.panel_stride + group * group_bytes;
          float w_scale = 0.0F;
          std::memcpy(&w_scale, weights + b.quads * 4 * kPanelRows + row * 4, sizeof(w_scale));
          std::int32_t sum = 0;
          for (std::int64_t k = 0; k < b.quads * 4; ++k) {
            const int w = int{weights[k / 4 * 4 * kPanelRows + row * 4 + k % 4]} - 128;
            const int x = b.x[((group * b.quads + k / 4) * b.n_tokens + t) * 4 + k % 4];
            sum += w * x;
          }
          p = p + static_cast<float>(sum) * w_scale * b.x_scales[group * b.n_tokens + t];
        }
        out = p;
      }
    }
  }
}

// A group of zeros, or so small that its scale is no number above 0, becomes zeros. One with an infinity or a NaN
// becomes zeros with the scale NaN, so that the output shows it.
void quantize(const float* x, std::int64_t groups, std::int64_t group, std::int8_t* q, float* scales) {
  for (std::int64_t g = 0; g < groups; ++g, x += group, q += group) {
    float largest = 0.0F;
    bool finite = true;
    for (std::int64_t i = 0; i < group; ++i) {
      if (!std::isfinite(x[i])) finite = false;
      if (std::fabs(x[i]) > largest) largest = std::fabs(x[i]);
    }
    const float scale = largest / 127.0F;
    scales[g] = finite ? scale : std::numeric_limits<float>::quiet_NaN();
    for (std::int64_t i = 0; i < group; ++i) {
      if (!finite || scale == 0.0F) {
        q[i] = 0;
        continue;
      }
      // A scale that is a denormal is coarse: then the quotient can pass 127.
      const float rounded = std::round(x[i] / scale);
      q[i] = static_cast<std::int8_t>(rounded > 127.0F ? 127.0F : rounded < -127.0F ? -127.0F : rounded);
    }
  }
}

float sum_squares(const float* x, std::int64_t n) {
  float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < padded(n); ++i) {
    const float value = i < n ? x[i] : 0.0F;
    lanes[i % kLanes] = std::fma(value, value, lanes[i % kLanes]);
  }
  return sum_of_lanes(lanes);
}

void scale(const float* x, float factor, const float* gain, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float scaled = x[i] * factor;
    out[i] = gain == nullptr ? scaled : scaled * gain[i];
  }
}

void center(const float* x, float* out, std::int64_t n) {
  float lanes[kLanes] = {};
  for (std::int64_t i = 0; i < n; ++i) lanes[i % kLanes] = lanes[i % kLanes] + x[i];
  const float mean = sum_of_lanes(lanes) / static_cast<float>(n);
  for (std::int64_t i = 0; i < n; ++i) out[i] = x[i] - mean;
}

void add(const float* a, const float* b, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

void gated(Activation activation, const float* gate, const float* up, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (activation == Activation::clamped_swiglu) {
      out[i] = clamped_swiglu(gate[i], up[i]);
      continue;
    }
    const float value = activated(activation, gate[i]);
    out[i] = up == nullptr ? value : value * up[i];
  }
}

// What an activation gives, and by how much it grows with what it is given.
struct Slope {
  float value, slope;
};

Slope slope_of(Activation activation, float x) {
  switch (activation) {
    case Activation::silu: {
      const float s = sigmoid(x);
      const float value = x * s;
      return {value, std::fma(value, 1.0F - s, s)};
    }
    case Activation::gelu_tanh: {
      const float s = sigmoid(x * std::fma(x * x, 0.0713548163F, 1.59576912F));
      const float value = x * s;
      const float inner = std::fma(x * x, 0.214064449F, 1.59576912F);  // by how much sigmoid's argument grows
      return {value, std::fma(value * (1.0F - s), inner, s)};
    }
    case Activation::relu_squared: {
      const float positive = x < 0.0F ? 0.0F : x;
      return {positive * positive, positive + positive};
    }
    case Activation::clamped_swiglu:
      break;  // of two numbers
  }
  return {x, 1.0F};
}

void gated_gradient(Activation activation, const float* gate, const float* up, float* d, float* dup, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const float x = gate[i];
    const float y = d[i];
    if (activation == Activation::clamped_swiglu) {
      const float g = 7.0F < x ? 7.0F : x;
      const float u = 7.0F < up[i] ? 7.0F : up[i] < -7.0F ? -7.0F : up[i];
      const float s = sigmoid(1.702F * g);
      const float value = g * s;
      const float slope = std::fma(1.702F * value, 1.0F - s, s);
      d[i] = 7.0F < x ? 0.0F : (y * (u + 1.0F)) * slope;
      dup[i] = 7.0F < up[i] ? 0.0F : up[i] < -7.0F ? 0.0F : y * value;
      continue;
    }
    const Slope a = slope_of(activation, x);
    if (up != nullptr) dup[i] = y * a.value;
    d[i] = (up == nullptr ? y : y * up[i]) * a.slope;
  }
}

void soft_cap(const float* x, float cap, float* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = cap * tanh_of(x[i] / cap);
}

// (a, b) turned by the angle: (a cos - b sin, b cos + a sin), the second product rounded, the first one fused.
void turn(float& a, float& b, float cos, float sin) {
  const float a0 = a;
  a = std::fma(a0, cos, -(b * sin));
  b = std::fma(b, cos, a0 * sin);
}

void rope_interleaved(float* x, const float* cos, const float* sin, std::int64_t n) {
  for (std::int64_t j = 0; j < n / 2; ++j) turn(x[2 * j], x[2 * j + 1], cos[j], sin[j]);
}

void rope_half_split(float* x, const float* cos, const float* sin, std::int64_t n) {
  for (std::int64_t j = 0; j < n / 2; ++j) turn(x[j], x[j + n / 2], cos[j], sin[j]);
}

void narrow(const float* x, std::uint16_t* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = float_to_half(x[i]);
}

void narrow_bf16(const float* x, std::uint16_t* out, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = float_to_bf16(x[i]);
}

void turn_rows(const float* x, std::int64_t stride, std::int64_t rows, float* out, std::int64_t out_stride) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t i = 0; i < 16; ++i) out[i * out_stride + r] = x[r * stride + i];
  }
}

// Number i of a cache.
float number(const float* cache, std::int64_t i) { return cache[i]; }
float number(const std::uint16_t* cache, std::int64_t i) { return widen(cache[i]); }
float number(const Q8Block* cache, std::int64_t i) {
  const Q8Block& block = cache[i / kQ8Numbers];
  return static_cast<float>(block.q[i % kQ8Numbers]) * half_to_float(block.scale);
}

template <class T>
void scores_of(const float* q, const T* keys, std::int64_t n, std::int64_t head_dim, float root, float* out) {
  const float factor = 1.0F / root;
  for (std::int64_t p = 0; p < n; ++p) {
    float lanes[kLanes] = {};
    for (std::int64_t i = 0; i < padded(head_dim); ++i) {
      const float a = i < head_dim ? q[i] : 0.0F;
      const float b = i < head_dim ? number(keys, p * head_dim + i) : 0.0F;
      lanes[i % kLanes] = std::fma(a, b, lanes[i % kLanes]);
    }
    out[p] = sum_of_lanes(lanes) * factor;
  }
}

template <class T>
void scores(const ScoresOf<T>& call) {
  for (std::int64_t i = 0; i < call.queries; ++i) {
    scores_of(call.q[i], call.keys, call.n, call.head_dim, call.root, call.out[i]);
  }
}

// A sink is one more score, whose exponential comes last in the sum.
void softmax(const float* scores, const float* sink, float* out, std::int64_t n) {
  float largest = -std::numeric_limits<float>::infinity();
  for (std::int64_t p = 0; p < n; ++p) largest = scores[p] > largest ? scores[p] : largest;
  if (sink != nullptr && *sink > largest) largest = *sink;
  float lanes[kLanes] = {};
  for (std::int64_t p = 0; p < n; ++p) {
    out[p] = exp_nonpositive(scores[p] - largest);
    lanes[p % kLanes] = lanes[p % kLanes] + out[p];
  }
  float sum = sum_of_lanes(lanes);
  if (sink != nullptr) sum = sum + exp_nonpositive(*sink - largest);
  for (std::int64_t p = 0; p < n; ++p) out[p] = out[p] / sum;
}

template <class T>
void mix_of(const float* pattern, const T* values, std::int64_t n, std::int64_t head_dim, float* z) {
  for (std::int64_t d = 0; d < head_dim; ++d) {
    float sum = 0.0F;
    for (std::int64_t tile = 0; tile < n; tile += kKeyTile) {
      float part = 0.0F;
      for (std::int64_t p = tile; p < n && p < tile + kKeyTile; ++p) {
        part = std::fma(pattern[p], number(values, p * head_dim + d), part);
      }
      sum = sum + part;
    }
    z[d] = sum;
  }
}

template <class T>
void mix(const MixOf<T>& call) {
  for (std::int64_t i = 0; i < call.queries; ++i) {
    mix_of(call.pattern[i], call.values, call.n[i], call.head_dim, call.z[i]);
  }
}

constexpr KernelTable kTable{
    .name = "reference",
    .tile = 12,
    .packed_tokens = 12,
    .most_scores = 160 * 1024,
    .matmul_f32 = matmul_float<float, widen>,
    .matmul_f16 = matmul_float<std::uint16_t, widen>,
    .matmul_bf16 = matmul_float<std::uint16_t, bf16_to_float>,
    .matmul_pairs = matmul_pairs,
    .matmul_int8 = matmul_int8,
    .quantize = quantize,
    .matmul_blocks = reference_matmul_blocks,
    .matmul_open = reference_matmul_open,
    .matmul_wide = reference_matmul_wide,
    .unpack_blocks = reference_unpack_blocks,
    .widen_blocks = reference_widen_blocks,
    .quantize_blocks = reference_quantize_blocks,
    .matmul_llm_int8 = reference_matmul_llm_int8,
    .quantize_row = reference_quantize_row,
    .sum_squares = sum_squares,
    .scale = scale,
    .center = center,
    .add = add,
    .gated = gated,
    .gated_gradient = gated_gradient,
    .soft_cap = soft_cap,
    .rope_interleaved = rope_interleaved,
    .rope_half_split = rope_half_split,
    .narrow = narrow,
    .narrow_bf16 = narrow_bf16,
    .turn_rows = turn_rows,
    .scores_f32 = scores<float>,
    .scores_f16 = scores<std::uint16_t>,
    .scores_q8 = scores<Q8Block>,
    .softmax = softmax,
    .mix_f32 = mix<float>,
    .mix_f16 = mix<std::uint16_t>,
    .mix_q8 = mix<Q8Block>,
};

}  // namespace

const KernelTable* reference_kernels(Arithmetic arithmetic) noexcept {
  static const KernelTable llama2c = reference_in_llama2c_order(kTable);
  return arithmetic == Arithmetic::llama2c ? &llama2c : &kTable;
}

}  // namespace llama2cpp
