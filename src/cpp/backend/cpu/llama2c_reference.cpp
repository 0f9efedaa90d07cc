// The specification of Arithmetic::llama2c: what llama2.c's runq computes when gcc compiles it for x86-64 with -O3. Each
// operation is rounded by itself, nothing is fused, and a sum takes its terms one after another, from 0. Every SIMD
// kernel gives these bits. Kept apart from the kernels' templates, as reference.cpp is.
#include "backend/cpu/llama2c_reference.h"

#include <bit>
#include <cmath>

#include "core/glibc_float.h"
#include "core/half.h"

namespace llama2cpp {

float llama2c_exponential(float x) {
  if (std::isnan(x)) return x;
  if (x < kExpLowest) return 0.0F;
  if (x > kExpHighest) return kInfinity;
  const double k = std::fma(kExpScale, double{x}, kExpRound) - kExpRound;
  const double r = std::fma(kExpScale, double{x}, -k);
  const auto steps = static_cast<std::uint64_t>(static_cast<std::int64_t>(k));
  const auto power = std::bit_cast<double>(kExpTable[steps % 32] + (steps << 47));  // 2^(k / 32)
  const double high = std::fma(kExpCubic, r, kExpSquare);
  const double low = std::fma(kExpLinear, r, 1.0);
  return static_cast<float>(std::fma(high, r * r, low) * power);
}

namespace {

float sum_squares(const float* x, std::int64_t n) {
  float sum = 0.0F;
  for (std::int64_t i = 0; i < n; ++i) sum = sum + x[i] * x[i];
  return sum;
}

// runq knows silu alone.
void gated(Activation activation, const float* gate, const float* up, float* out, std::int64_t n) {
  if (activation != Activation::silu) return reference_kernels()->gated(activation, gate, up, out, n);
  for (std::int64_t i = 0; i < n; ++i) {
    const float sigmoid = 1.0F / (1.0F + llama2c_exponential(-gate[i]));
    const float value = gate[i] * sigmoid;
    out[i] = up == nullptr ? value : value * up[i];
  }
}

void turn(float& a, float& b, float cos, float sin) {
  const float a0 = a;
  const float b0 = b;
  a = a0 * cos - b0 * sin;
  b = a0 * sin + b0 * cos;
}

void rope_interleaved(float* x, const float* cos, const float* sin, std::int64_t n) {
  for (std::int64_t j = 0; j < n / 2; ++j) turn(x[2 * j], x[2 * j + 1], cos[j], sin[j]);
}

void rope_half_split(float* x, const float* cos, const float* sin, std::int64_t n) {
  for (std::int64_t j = 0; j < n / 2; ++j) turn(x[j], x[j + n / 2], cos[j], sin[j]);
}

// Number i of a cache.
float number(const float* cache, std::int64_t i) { return cache[i]; }
float number(const std::uint16_t* cache, std::int64_t i) { return half_to_float(cache[i]); }
float number(const Q8Block* cache, std::int64_t i) {
  const Q8Block& block = cache[i / kQ8Numbers];
  return static_cast<float>(block.q[i % kQ8Numbers]) * half_to_float(block.scale);
}

template <class T>
void scores_of(const float* q, const T* keys, std::int64_t n, std::int64_t head_dim, float root, float* out) {
  for (std::int64_t p = 0; p < n; ++p) {
    float sum = 0.0F;
    for (std::int64_t i = 0; i < head_dim; ++i) sum = sum + q[i] * number(keys, p * head_dim + i);
    out[p] = sum / root;
  }
}

template <class T>
void scores(const ScoresOf<T>& call) {
  for (std::int64_t i = 0; i < call.queries; ++i) {
    scores_of(call.q[i], call.keys, call.n, call.head_dim, call.root, call.out[i]);
  }
}

void softmax(const float* scores, const float* sink, float* out, std::int64_t n) {
  float largest = scores[0];
  for (std::int64_t p = 1; p < n; ++p) largest = scores[p] > largest ? scores[p] : largest;
  if (sink != nullptr && *sink > largest) largest = *sink;
  float sum = 0.0F;
  for (std::int64_t p = 0; p < n; ++p) {
    out[p] = llama2c_exponential(scores[p] - largest);
    sum = sum + out[p];
  }
  if (sink != nullptr) sum = sum + llama2c_exponential(*sink - largest);
  for (std::int64_t p = 0; p < n; ++p) out[p] = out[p] / sum;
}

template <class T>
void mix_of(const float* pattern, const T* values, std::int64_t n, std::int64_t head_dim, float* z) {
  for (std::int64_t d = 0; d < head_dim; ++d) {
    float sum = 0.0F;
    for (std::int64_t p = 0; p < n; ++p) sum = sum + pattern[p] * number(values, p * head_dim + d);
    z[d] = sum;
  }
}

template <class T>
void mix(const MixOf<T>& call) {
  for (std::int64_t i = 0; i < call.queries; ++i) {
    mix_of(call.pattern[i], call.values, call.n[i], call.head_dim, call.z[i]);
  }
}

}  // namespace

KernelTable reference_in_llama2c_order(KernelTable contract) {
  KernelTable table = contract;
  table.sum_squares = sum_squares;
  table.gated = gated;
  table.rope_interleaved = rope_interleaved;
  table.rope_half_split = rope_half_split;
  table.scores_f32 = scores<float>;
  table.scores_f16 = scores<std::uint16_t>;
  table.scores_q8 = scores<Q8Block>;
  table.softmax = softmax;
  table.mix_f32 = mix<float>;
  table.mix_f16 = mix<std::uint16_t>;
  table.mix_q8 = mix<Q8Block>;
  return table;
}

}  // namespace llama2cpp
