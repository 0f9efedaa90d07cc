// Kernels without SIMD instructions: what any machine can run. A register of 16 lanes is an array.
#include <cmath>
#include <cstring>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"
#include "core/half.h"

namespace llama2cpp {
namespace {

constexpr const char* kIsaName = "scalar";

struct f32x16 {
  float lane[16];
};

// What is in flight, which every ISA chooses by its registers. Here sums live in memory anyway.
constexpr int kTileTokens = 4;                        // matmul: tokens of a tile
constexpr int kTilePanels = 1;                        // panels that a whole tile goes with
constexpr int kMostPanels = 1;                        // floats: panels that fewer tokens go with, at most
constexpr int kFewPanels = 1;                         // integers, one token
constexpr int kBlockTokens = 3;                       // block formats as they are packed: tokens at a time, at least 3
constexpr int kPairTokens = 0;                        // likewise with two panels at once: none, or at least 5
constexpr int wide_panels(BlockLayout) { return 1; }  // block formats whose input stays floats, one token
constexpr bool kLooksUp = false;                      // whether number_of<4> sees the lowest 4 bits of a byte only
constexpr int kQueries = 1;                           // attention: queries at once

template <class F>
inline f32x16 map(F f) {
  f32x16 r;
  for (int j = 0; j < 16; ++j) r.lane[j] = f(j);
  return r;
}

inline f32x16 set1(float x) {
  return map([&](int) { return x; });
}
inline f32x16 load(const float* p) {
  f32x16 r;
  std::memcpy(r.lane, p, sizeof(r.lane));
  return r;
}
inline f32x16 load_part(const float* p, std::int64_t n) {
  return map([&](int j) { return j < n ? p[j] : 0.0F; });
}
inline f32x16 load(const std::uint16_t* p) {
  return map([&](int j) { return half_to_float(p[j]); });
}
inline f32x16 load_part(const std::uint16_t* p, std::int64_t n) {
  return map([&](int j) { return j < n ? half_to_float(p[j]) : 0.0F; });
}
inline void store(float* p, f32x16 a) { std::memcpy(p, a.lane, sizeof(a.lane)); }
inline void store_part(float* p, f32x16 a, std::int64_t n) {
  std::memcpy(p, a.lane, static_cast<std::size_t>(n) * sizeof(float));
}
inline void store_half(std::uint16_t* p, f32x16 a) {
  for (int j = 0; j < 16; ++j) p[j] = float_to_half(a.lane[j]);
}
inline void store_bf16(std::uint16_t* p, const f32x16& a) {
  for (int j = 0; j < 16; ++j) {
    std::uint32_t bits;
    std::memcpy(&bits, &a.lane[j], 4);
    const bool nan = (bits & 0x7FFFFFFFU) > 0x7F800000U;
    p[j] = static_cast<std::uint16_t>(nan ? bits >> 16 | 0x40U : (bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
  }
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return map([&](int j) { return std::fma(a.lane[j], b.lane[j], c.lane[j]); });
}
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline double fused(double a, double b, double c) { return std::fma(a, b, c); }
#include "backend/cpu/isa/flushed_fma.inl"
inline f32x16 fma_flushed(const f32x16& a, const f32x16& b, const f32x16& c) {
  return map([&](int j) { return fma_flushed(a.lane[j], b.lane[j], c.lane[j]); });
}
// Where a machine has a mode for that, it is set meanwhile.
inline void run_flushed(const PairBlock& b, void (*multiply)(const PairBlock&)) { multiply(b); }
inline f32x16 add(f32x16 a, f32x16 b) {
  return map([&](int j) { return a.lane[j] + b.lane[j]; });
}
inline f32x16 sub(f32x16 a, f32x16 b) {
  return map([&](int j) { return a.lane[j] - b.lane[j]; });
}
inline f32x16 mul(f32x16 a, f32x16 b) {
  return map([&](int j) { return a.lane[j] * b.lane[j]; });
}
inline f32x16 div(f32x16 a, f32x16 b) {
  return map([&](int j) { return a.lane[j] / b.lane[j]; });
}
inline f32x16 larger(f32x16 a, f32x16 b) {
  return map([&](int j) { return a.lane[j] > b.lane[j] ? a.lane[j] : b.lane[j]; });
}
inline f32x16 negative_abs(f32x16 a) {
  return map([&](int j) { return -std::fabs(a.lane[j]); });
}
// a < b ? x : y
inline f32x16 if_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return map([&](int j) { return a.lane[j] < b.lane[j] ? x.lane[j] : y.lane[j]; });
}
// 2^n, where t = n + 1.5 * 2^23 and n is in [-126, 127]
inline f32x16 power_of_two(f32x16 t) {
  return map([&](int j) {
    std::uint32_t bits;
    std::memcpy(&bits, &t.lane[j], 4);
    bits = (bits << 23) + 0x3F800000U;
    float r;
    std::memcpy(&r, &bits, 4);
    return r;
  });
}
inline f32x16 swap_pairs(f32x16 a) {
  return map([&](int j) { return a.lane[j ^ 1]; });
}
inline f32x16 repeat_pairs(const float* p) {  // p[0] p[0] p[1] p[1] ... p[7] p[7]
  return map([&](int j) { return p[j / 2]; });
}
inline f32x16 negate_even(f32x16 a) {
  return map([&](int j) { return j % 2 == 0 ? -a.lane[j] : a.lane[j]; });
}
inline float sum_lanes(f32x16 a) {
  for (int half = 8; half >= 1; half /= 2) {
    for (int j = 0; j < half; ++j) a.lane[j] = a.lane[j] + a.lane[j + half];
  }
  return a.lane[0];
}
// out[i] = sum_lanes(a[i]) * factor
inline void sum_lanes_of_4(const f32x16 (&a)[4], float factor, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = sum_lanes(a[i]) * factor;
}
inline float max_lane(f32x16 a) {
  float m = a.lane[0];
  for (int j = 1; j < 16; ++j) m = a.lane[j] > m ? a.lane[j] : m;
  return m;
}

// The greatest integers not beyond a, toward zero.
inline f32x16 truncate(f32x16 a) {
  return map([&](int j) { return std::trunc(a.lane[j]); });
}
inline float min_lane(f32x16 a) {
  float m = a.lane[0];
  for (int j = 1; j < 16; ++j) m = a.lane[j] < m ? a.lane[j] : m;
  return m;
}
inline void store_int8(std::int8_t* p, f32x16 a) {
  for (int j = 0; j < 16; ++j) p[j] = static_cast<std::int8_t>(a.lane[j]);
}

// Integer dot products: 16 rows of 4 bytes each, times 4 bytes of one token.
struct i32x16 {
  std::int32_t lane[16];
};
struct quads16 {
  std::uint8_t byte[64];
};

inline quads16 load_quads(const std::uint8_t* p) {
  quads16 r;
  std::memcpy(r.byte, p, sizeof(r.byte));
  return r;
}
inline i32x16 dot_zero() { return {}; }
// (*start << shift) in all lanes; dot_start_128 where dot_quads needs it
inline i32x16 dot_start(const std::int32_t* start, int shift) {
  i32x16 r;
  for (std::int32_t& lane : r.lane) lane = *start * (1 << shift);
  return r;
}
inline i32x16 dot_start_128(const std::int32_t*) { return {}; }
inline i32x16 dot_quads(i32x16 sum, const quads16& w, const std::int8_t* x) {
  for (int j = 0; j < 16; ++j) {
    for (int k = 0; k < 4; ++k) sum.lane[j] += (int{w.byte[4 * j + k]} - 128) * int{x[k]};
  }
  return sum;
}
inline i32x16 to_int(f32x16 a) {
  i32x16 r;
  for (int j = 0; j < 16; ++j) r.lane[j] = static_cast<std::int32_t>(a.lane[j]);
  return r;
}
// sum + w * *x, where both factors fit into 16 bits
inline i32x16 add_product(i32x16 sum, const i32x16& w, const std::int32_t* x) {
  for (int j = 0; j < 16; ++j) sum.lane[j] += w.lane[j] * *x;
  return sum;
}
inline f32x16 to_float(const i32x16& a) {
  return map([&](int j) { return static_cast<float>(a.lane[j]); });
}

// 16 rows of 4 unsigned bytes, below 128 where they are multiplied.
using bytes64 = quads16;
inline void prefetch(const std::uint8_t*) {}
inline bytes64 load_bytes64(const std::uint8_t* p) { return load_quads(p); }
inline void store_bytes64(std::uint8_t* p, const bytes64& a) { std::memcpy(p, a.byte, sizeof(a.byte)); }
template <class F>
inline bytes64 map_words(F f) {
  bytes64 r;
  for (int j = 0; j < 16; ++j) {
    const std::uint32_t word = f(j);
    std::memcpy(r.byte + 4 * j, &word, 4);
  }
  return r;
}
inline std::uint32_t word_of(const bytes64& a, int j) {
  std::uint32_t word;
  std::memcpy(&word, a.byte + 4 * j, 4);
  return word;
}
// Each row's four bytes as one number: down by kShift bits, or up.
template <int kShift>
inline bytes64 shift(const bytes64& a) {
  return map_words(
      [&](int j) { return kShift >= 0 ? word_of(a, j) >> (kShift & 31) : word_of(a, j) << (-kShift & 31); });
}
inline bytes64 keep(const bytes64& a, int mask) {
  return map_words([&](int j) { return word_of(a, j) & static_cast<std::uint32_t>(mask); });
}
inline bytes64 either(const bytes64& a, const bytes64& b) {
  return map_words([&](int j) { return word_of(a, j) | word_of(b, j); });
}
inline i32x16 dot_small(i32x16 sum, const bytes64& w, const std::int8_t* x) {
  for (int j = 0; j < 16; ++j) {
    for (int k = 0; k < 4; ++k) sum.lane[j] += int{w.byte[4 * j + k]} * int{x[k]};
  }
  return sum;
}
// Byte I of each row.
template <int I>
inline f32x16 byte_of(const bytes64& a) {
  return map([&](int j) { return static_cast<float>(a.byte[4 * j + I]); });
}
// What number_of's results are multiples of.
template <int kBits>
constexpr float kNumberUnit = 1.0F;
// Byte I of each row, a number of kBits, less kOffset.
template <int kBits, int kOffset, int I>
inline f32x16 number_of(const bytes64& a) {
  if constexpr (kOffset == 0) return byte_of<I>(a);
  return sub(byte_of<I>(a), set1(static_cast<float>(kOffset)));
}
inline f32x16 load_int8(const std::int8_t* p) {
  return map([&](int j) { return static_cast<float>(p[j]); });
}
// The half at p, in all lanes.
inline f32x16 set1_half(const std::uint16_t* p) { return set1(half_to_float(*p)); }
inline bytes64 repeat_word(const std::uint32_t* x) {
  return map_words([&](int) { return *x; });
}
inline f32x16 as_floats(const bytes64& a) {
  f32x16 r;
  std::memcpy(r.lane, a.byte, sizeof(r.lane));
  return r;
}
inline f32x16 load_bf16(const std::uint16_t* p) {
  return map([&](int j) {
    const std::uint32_t bits = std::uint32_t{p[j]} << 16;
    float r;
    std::memcpy(&r, &bits, 4);
    return r;
  });
}
inline f32x16 load_bytes(const std::uint8_t* p) {
  f32x16 r;
  std::memcpy(r.lane, p, sizeof(r.lane));
  return r;
}

#include "backend/cpu/isa/doubles_scalar.inl"
#include "backend/cpu/isa/few_registers.inl"

#include "backend/cpu/kernels.inl"

}  // namespace

const KernelTable* scalar_kernels(Arithmetic arithmetic) noexcept { return kernels(arithmetic); }

}  // namespace llama2cpp
