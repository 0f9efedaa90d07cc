// The registers of both AVX2 files: a register of 16 lanes is two ymm, lanes 0-7 and 8-15. Included inside their anonymous
// namespaces.

constexpr const char* kIsaName = "avx2";

struct f32x16 {
  __m256 lo, hi;
};

// What these are is in scalar.cpp. 16 registers: a tile of 1 panel x 6 tokens keeps 12 sums, 2 weights and a broadcast.
constexpr int kTileTokens = 6;
constexpr int kTilePanels = 1;
constexpr int kMostPanels = 4;
constexpr int kFewPanels = 1;
constexpr int kBlockTokens = 3;
constexpr int kPairTokens = 0;
// Two where a panel has no more than its scale to keep: one alone waits for its sums.
constexpr int wide_panels(BlockLayout l) { return l.bits % 4 == 0 && !l.sub_scales && !l.minimum && !l.zeros ? 2 : 1; }
constexpr bool kLooksUp = false;
constexpr int kQueries = 1;

// All bits set in the first n of 8 lanes.
inline __m256i first_lanes(std::int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane);
}

inline f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline f32x16 load_part(const float* p, std::int64_t n) {
  if (n <= 8) return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_setzero_ps()};
  return {_mm256_loadu_ps(p), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
inline f32x16 load(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline f32x16 load_part(const std::uint16_t* p, std::int64_t n) {
  std::uint16_t padded[16] = {};
  for (std::int64_t j = 0; j < n; ++j) padded[j] = p[j];
  return load(padded);
}
inline void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void store_part(float* p, f32x16 a, std::int64_t n) {
  if (n <= 8) return _mm256_maskstore_ps(p, first_lanes(n), a.lo);
  _mm256_storeu_ps(p, a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(n - 8), a.hi);
}
inline void store_half(std::uint16_t* p, f32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(std::uint16_t* p, f32x16 a) {
  const auto half = [](__m256 eight) {
    const __m256i bits = _mm256_castps_si256(eight);
    const __m256i high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);  // halves to even
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(eight, eight, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
  };
  const __m256i all = _mm256_packus_epi32(half(a.lo), half(a.hi));  // four of lo, four of hi, and again
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(all, 0xD8));
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline f32x16 add(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline f32x16 sub(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline f32x16 mul(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline f32x16 div(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline f32x16 larger(f32x16 a, f32x16 b) {  // b where either is NaN
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline f32x16 negative_abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  return {_mm256_or_ps(a.lo, sign), _mm256_or_ps(a.hi, sign)};
}
inline f32x16 if_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return {_mm256_blendv_ps(y.lo, x.lo, _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.hi, x.hi, _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ))};
}
inline __m256 power_of_two(__m256 t) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_set1_epi32(0x3F800000)));
}
inline f32x16 power_of_two(f32x16 t) { return {power_of_two(t.lo), power_of_two(t.hi)}; }
inline f32x16 swap_pairs(f32x16 a) { return {_mm256_permute_ps(a.lo, 0xB1), _mm256_permute_ps(a.hi, 0xB1)}; }
inline f32x16 repeat_pairs(const float* p) {
  const __m256 eight = _mm256_loadu_ps(p);
  return {_mm256_permutevar8x32_ps(eight, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)),
          _mm256_permutevar8x32_ps(eight, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7))};
}
inline f32x16 negate_even(f32x16 a) {
  const __m256 sign = _mm256_castsi256_ps(_mm256_set1_epi64x(static_cast<long long>(0x80000000U)));
  return {_mm256_xor_ps(a.lo, sign), _mm256_xor_ps(a.hi, sign)};
}
// By halves: j and j + 8, j and j + 4, j and j + 2, j and j + 1.
inline float sum_lanes(f32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// out[i] = sum_lanes(a[i]) * factor, the same sums, side by side.
inline void sum_lanes_of_4(const f32x16 (&a)[4], float factor, float* out) {
  const auto four = [&](int i) {  // lanes j + (j + 8), then those j + (j + 4), of two
    const __m256 x = _mm256_add_ps(a[i].lo, a[i].hi);
    const __m256 y = _mm256_add_ps(a[i + 1].lo, a[i + 1].hi);
    return _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  };
  const __m256 x = four(0);
  const __m256 y = four(2);
  const __m256 two = _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xEE));
  const __m256 one = _mm256_add_ps(two, _mm256_permute_ps(two, 0xB1));  // 0 0 2 2, 1 1 3 3
  const __m128 even = _mm256_castps256_ps128(one);
  const __m128 odd = _mm256_extractf128_ps(one, 1);
  const __m128 sums = _mm_unpacklo_ps(_mm_shuffle_ps(even, even, 0x88), _mm_shuffle_ps(odd, odd, 0x88));
  _mm_storeu_ps(out, _mm_mul_ps(sums, _mm_set1_ps(factor)));
}
inline float max_lane(f32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

inline f32x16 truncate(f32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)};
}
inline float min_lane(f32x16 a) {
  const __m256 eight = _mm256_min_ps(a.lo, a.hi);
  const __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_min_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_min_ss(two, _mm_movehdup_ps(two)));
}
inline void store_int8(std::int8_t* p, f32x16 a) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvttps_epi32(a.lo), _mm256_cvttps_epi32(a.hi));
  const __m256i in_order = _mm256_permute4x64_epi64(words, 0xD8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(in_order), _mm256_extracti128_si256(in_order, 1)));
}

// Integer dot products: 16 rows of 4 bytes each, times 4 bytes of one token.
struct i32x16 {
  __m256i lo, hi;
};
inline i32x16 dot_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
// (*start << shift) in all lanes
inline i32x16 dot_start(const std::int32_t* start, int shift) {
  const __m256i all = _mm256_sll_epi32(_mm256_set1_epi32(*start), _mm_cvtsi32_si128(shift));
  return {all, all};
}
inline __m256i repeat_quad(const std::int8_t* x) {
  int quad;
  __builtin_memcpy(&quad, x, 4);
  return _mm256_set1_epi32(quad);
}
// *x in the low 16 bits of all lanes
inline __m256i repeat_low(const std::int32_t* x) { return _mm256_set1_epi32(static_cast<std::uint16_t>(*x)); }
inline i32x16 to_int(f32x16 a) { return {_mm256_cvttps_epi32(a.lo), _mm256_cvttps_epi32(a.hi)}; }
inline f32x16 to_float(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }

// 16 rows of 4 unsigned bytes, below 128 where they are multiplied: two products fit into 16 bits.
struct bytes64 {
  __m256i lo, hi;
};
inline bytes64 load_bytes64(const std::uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline void store_bytes64(std::uint8_t* p, bytes64 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), a.hi);
}
// Each row's four bytes as one number: down by kShift bits, or up.
template <int kShift>
inline bytes64 shift(bytes64 a) {
  if constexpr (kShift > 0) return {_mm256_srli_epi32(a.lo, kShift), _mm256_srli_epi32(a.hi, kShift)};
  if constexpr (kShift < 0) return {_mm256_slli_epi32(a.lo, -kShift), _mm256_slli_epi32(a.hi, -kShift)};
  return a;
}
inline bytes64 keep(bytes64 a, int mask) {
  const __m256i all = _mm256_set1_epi32(mask);
  return {_mm256_and_si256(a.lo, all), _mm256_and_si256(a.hi, all)};
}
inline bytes64 either(bytes64 a, bytes64 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
// Byte I of each row.
template <int I>
inline f32x16 byte_of(bytes64 a) {
  constexpr int kNone = static_cast<int>(0x80808000U);  // zeros above it
  const __m256i bytes =
      _mm256_broadcastsi128_si256(_mm_setr_epi32(kNone + I, kNone + I + 4, kNone + I + 8, kNone + I + 12));
  return {_mm256_cvtepi32_ps(_mm256_shuffle_epi8(a.lo, bytes)), _mm256_cvtepi32_ps(_mm256_shuffle_epi8(a.hi, bytes))};
}
// What number_of's results are multiples of.
template <int kBits>
constexpr float kNumberUnit = 0x1p24F;
// Byte I of each row, a number of kBits, less kOffset: as an integer's highest byte, where it has its sign.
template <int kBits, int kOffset, int I>
inline f32x16 number_of(bytes64 a) {
  constexpr int kTop = static_cast<int>(0x00808080U) + (I << 24);  // zeros below it
  const __m256i places =
      _mm256_broadcastsi128_si256(_mm_setr_epi32(kTop, kTop + (4 << 24), kTop + (8 << 24), kTop + (12 << 24)));
  const auto half = [&](__m256i bytes) {
    const __m256i less = _mm256_sub_epi8(bytes, _mm256_set1_epi8(static_cast<char>(kOffset)));
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(less, places));
  };
  return {half(a.lo), half(a.hi)};
}
inline f32x16 load_int8(const std::int8_t* p) {
  const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all)))};
}
// The half at p, in all lanes.
inline f32x16 set1_half(const std::uint16_t* p) {
  const __m256 all = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(*p)));
  return {all, all};
}
inline bytes64 repeat_word(const std::uint32_t* x) {
  const __m256i all = _mm256_set1_epi32(static_cast<int>(*x));
  return {all, all};
}
inline f32x16 as_floats(bytes64 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline f32x16 load_bf16(const std::uint16_t* p) {
  const auto half = [](const std::uint16_t* from) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  };
  return {half(p), half(p + 8)};
}
inline f32x16 load_bytes(const std::uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }

#include "backend/cpu/isa/doubles_avx2.inl"
#include "backend/cpu/isa/few_registers.inl"
#include "backend/cpu/isa/flush_x86.inl"
#include "backend/cpu/isa/prefetch_x86.inl"
