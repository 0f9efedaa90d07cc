// The registers of both NEON files: a register of 16 lanes is four of four. Included inside their anonymous namespaces.

constexpr const char* kIsaName = "neon";

struct f32x16 {
  float32x4_t q[4];
};

// What these are is in scalar.cpp. 32 registers: a tile of 1 panel x 6 tokens keeps 24 sums, 4 weights and a broadcast.
constexpr int kTileTokens = 6;
constexpr int kTilePanels = 1;
constexpr int kMostPanels = 4;
constexpr int kFewPanels = 1;
constexpr int kBlockTokens = 3;
constexpr int kPairTokens = 0;
constexpr int wide_panels(BlockLayout) { return 1; }
constexpr bool kLooksUp = false;
constexpr int kQueries = 1;

template <class F>
inline f32x16 map(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline f32x16 set1(float x) {
  return map([&](int) { return vdupq_n_f32(x); });
}
inline f32x16 load(const float* p) {
  return map([&](int i) { return vld1q_f32(p + 4 * i); });
}
inline f32x16 load_part(const float* p, std::int64_t n) {
  float padded[16] = {};
  for (std::int64_t j = 0; j < n; ++j) padded[j] = p[j];
  return load(padded);
}
inline f32x16 load(const std::uint16_t* p) {
  return map([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
}
inline f32x16 load_part(const std::uint16_t* p, std::int64_t n) {
  std::uint16_t padded[16] = {};
  for (std::int64_t j = 0; j < n; ++j) padded[j] = p[j];
  return load(padded);
}
inline void store(float* p, f32x16 a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]);
}
inline void store_part(float* p, f32x16 a, std::int64_t n) {
  float all[16];
  store(all, a);
  for (std::int64_t j = 0; j < n; ++j) p[j] = all[j];
}
inline void store_half(std::uint16_t* p, f32x16 a) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.q[i])));
}
inline void store_bf16(std::uint16_t* p, f32x16 a) {
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a.q[i]);
    const uint32x4_t high = vshrq_n_u32(bits, 16);
    const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7FFF)), odd);  // halves to even
    const uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
    vst1_u16(p + 4 * i, vmovn_u32(vbslq_u32(vceqq_f32(a.q[i], a.q[i]), vshrq_n_u32(up, 16), quiet)));
  }
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return map([&](int i) { return vfmaq_f32(c.q[i], a.q[i], b.q[i]); });
}
inline f32x16 add(f32x16 a, f32x16 b) {
  return map([&](int i) { return vaddq_f32(a.q[i], b.q[i]); });
}
inline f32x16 sub(f32x16 a, f32x16 b) {
  return map([&](int i) { return vsubq_f32(a.q[i], b.q[i]); });
}
inline f32x16 mul(f32x16 a, f32x16 b) {
  return map([&](int i) { return vmulq_f32(a.q[i], b.q[i]); });
}
inline f32x16 div(f32x16 a, f32x16 b) {
  return map([&](int i) { return vdivq_f32(a.q[i], b.q[i]); });
}
inline float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline f32x16 larger(f32x16 a, f32x16 b) {  // b where either is NaN, which vmaxq would hand on
  return map([&](int i) { return larger(a.q[i], b.q[i]); });
}
inline f32x16 negative_abs(f32x16 a) {
  return map([&](int i) { return vnegq_f32(vabsq_f32(a.q[i])); });
}
inline f32x16 if_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return map([&](int i) { return vbslq_f32(vcltq_f32(a.q[i], b.q[i]), x.q[i], y.q[i]); });
}
// 2^n, where t = n + 1.5 * 2^23 and n is in [-126, 127]
inline f32x16 power_of_two(f32x16 t) {
  return map([&](int i) {
    const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(t.q[i]), 23);
    return vreinterpretq_f32_u32(vaddq_u32(shifted, vdupq_n_u32(0x3F800000U)));
  });
}
inline f32x16 swap_pairs(f32x16 a) {
  return map([&](int i) { return vrev64q_f32(a.q[i]); });
}
inline f32x16 repeat_pairs(const float* p) {
  return map([&](int i) {
    const float32x2_t two = vld1_f32(p + 2 * i);
    return vcombine_f32(vdup_lane_f32(two, 0), vdup_lane_f32(two, 1));
  });
}
inline f32x16 negate_even(f32x16 a) {
  const uint32x4_t sign = vreinterpretq_u32_u64(vdupq_n_u64(0x80000000ULL));
  return map([&](int i) { return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(a.q[i]), sign)); });
}
// By halves: j and j + 8, j and j + 4, j and j + 2, j and j + 1.
inline float sum_lanes(f32x16 a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.q[0], a.q[2]), vaddq_f32(a.q[1], a.q[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
// out[i] = sum_lanes(a[i]) * factor
inline void sum_lanes_of_4(const f32x16 (&a)[4], float factor, float* out) {
  for (int i = 0; i < 4; ++i) out[i] = sum_lanes(a[i]) * factor;
}
inline float max_lane(f32x16 a) {
  float lanes[4];
  vst1q_f32(lanes, larger(larger(a.q[0], a.q[1]), larger(a.q[2], a.q[3])));
  float most = lanes[0];
  for (int j = 1; j < 4; ++j) most = lanes[j] > most ? lanes[j] : most;
  return most;
}

inline f32x16 truncate(f32x16 a) {
  return map([&](int i) { return vrndq_f32(a.q[i]); });
}
inline float min_lane(f32x16 a) { return vminvq_f32(vminq_f32(vminq_f32(a.q[0], a.q[1]), vminq_f32(a.q[2], a.q[3]))); }
inline void store_int8(std::int8_t* p, f32x16 a) {
  const auto word = [&](int i) { return vmovn_s32(vcvtq_s32_f32(a.q[i])); };
  vst1q_s8(p, vcombine_s8(vmovn_s16(vcombine_s16(word(0), word(1))), vmovn_s16(vcombine_s16(word(2), word(3)))));
}

// Integer dot products: 16 rows of 4 bytes each, times 4 bytes of one token.
struct i32x16 {
  int32x4_t q[4];
};
struct quads16 {
  int8x16_t q[4];  // signed, 4 rows each
};
inline quads16 load_quads(const std::uint8_t* p) {
  const uint8x16_t bias = vdupq_n_u8(0x80);
  const auto four_rows = [&](int i) { return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), bias)); };
  return {{four_rows(0), four_rows(1), four_rows(2), four_rows(3)}};
}
// (*start << shift) in all lanes
inline i32x16 dot_start(const std::int32_t* start, int shift) {
  const int32x4_t all = vdupq_n_s32(*start * (1 << shift));
  return {{all, all, all, all}};
}
inline i32x16 dot_zero() {
  const int32x4_t zero = vdupq_n_s32(0);
  return {{zero, zero, zero, zero}};
}
inline i32x16 dot_start_128(const std::int32_t*) { return dot_zero(); }  // the weights are signed here
inline std::int32_t quad_of(const std::int8_t* x) {
  std::int32_t quad;
  __builtin_memcpy(&quad, x, 4);
  return quad;
}
inline i32x16 to_int(f32x16 a) {
  return {{vcvtq_s32_f32(a.q[0]), vcvtq_s32_f32(a.q[1]), vcvtq_s32_f32(a.q[2]), vcvtq_s32_f32(a.q[3])}};
}
// sum + w * *x, where both factors fit into 16 bits
inline i32x16 add_product(i32x16 sum, const i32x16& w, const std::int32_t* x) {
  for (int i = 0; i < 4; ++i) sum.q[i] = vmlaq_n_s32(sum.q[i], w.q[i], *x);
  return sum;
}
inline f32x16 to_float(const i32x16& a) {
  return map([&](int i) { return vcvtq_f32_s32(a.q[i]); });
}

// 16 rows of 4 unsigned bytes, below 128 where they are multiplied.
struct bytes64 {
  uint8x16_t q[4];
};
template <class F>
inline bytes64 map_bytes(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline i32x16 dot_quads(i32x16 sum, const quads16& w, const std::int8_t* x);  // each file has its own
inline i32x16 dot_small(i32x16 sum, const bytes64& w, const std::int8_t* x) {
  const auto signed_rows = [&](int i) { return vreinterpretq_s8_u8(w.q[i]); };
  return dot_quads(sum, {{signed_rows(0), signed_rows(1), signed_rows(2), signed_rows(3)}}, x);
}
inline void prefetch(const std::uint8_t*) {}  // processors of this family follow the streams by themselves
inline bytes64 load_bytes64(const std::uint8_t* p) {
  return map_bytes([&](int i) { return vld1q_u8(p + 16 * i); });
}
inline void store_bytes64(std::uint8_t* p, const bytes64& a) {
  for (int i = 0; i < 4; ++i) vst1q_u8(p + 16 * i, a.q[i]);
}
// Each row's four bytes as one number: down by kShift bits, or up.
template <int kShift>
inline bytes64 shift(const bytes64& a) {
  const int32x4_t count = vdupq_n_s32(-kShift);
  return map_bytes([&](int i) { return vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(a.q[i]), count)); });
}
inline bytes64 keep(const bytes64& a, int mask) {
  const uint8x16_t all = vreinterpretq_u8_s32(vdupq_n_s32(mask));
  return map_bytes([&](int i) { return vandq_u8(a.q[i], all); });
}
inline bytes64 either(const bytes64& a, const bytes64& b) {
  return map_bytes([&](int i) { return vorrq_u8(a.q[i], b.q[i]); });
}
// Byte I of each row.
template <int I>
inline f32x16 byte_of(const bytes64& a) {
  const uint32x4_t mask = vdupq_n_u32(255);
  const int32x4_t count = vdupq_n_s32(-8 * I);
  return map([&](int i) { return vcvtq_f32_u32(vandq_u32(vshlq_u32(vreinterpretq_u32_u8(a.q[i]), count), mask)); });
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
  const int8x16_t all = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(all));
  const int16x8_t high = vmovl_s8(vget_high_s8(all));
  const auto floats = [](int16x4_t four) { return vcvtq_f32_s32(vmovl_s16(four)); };
  return {
      {floats(vget_low_s16(low)), floats(vget_high_s16(low)), floats(vget_low_s16(high)), floats(vget_high_s16(high))}};
}
// The half at p, in all lanes.
inline f32x16 set1_half(const std::uint16_t* p) {
  const float32x4_t all = vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(*p)));
  return {{all, all, all, all}};
}
inline bytes64 repeat_word(const std::uint32_t* x) {
  const uint8x16_t all = vreinterpretq_u8_u32(vdupq_n_u32(*x));
  return {{all, all, all, all}};
}
inline f32x16 as_floats(const bytes64& a) {
  return map([&](int i) { return vreinterpretq_f32_u8(a.q[i]); });
}
inline f32x16 load_bf16(const std::uint16_t* p) {
  return map([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
}
inline f32x16 load_bytes(const std::uint8_t* p) {
  return map([&](int i) { return vreinterpretq_f32_u8(vld1q_u8(p + 16 * i)); });
}

#include "backend/cpu/isa/doubles_neon.inl"
#include "backend/cpu/isa/few_registers.inl"
#include "backend/cpu/isa/flush_aarch64.inl"
