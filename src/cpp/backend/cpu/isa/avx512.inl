// The registers of both AVX-512 files: f32x16 is one zmm. Included inside their anonymous namespaces.

constexpr const char* kIsaName = "avx512";

using f32x16 = __m512;

// What these are is in scalar.cpp. 32 registers: a tile of 2 panels x 12 tokens keeps 24 sums, 2 weights and a broadcast.
// With few tokens, more panels in flight hide the latency of fma.
constexpr int kTileTokens = 12;
constexpr int kTilePanels = 2;
constexpr int kMostPanels = 4;
constexpr int kFewPanels = 1;
constexpr int kBlockTokens = 4;
constexpr int wide_panels(BlockLayout) { return 4; }
constexpr bool kLooksUp = true;
constexpr int kQueries = 4;  // 4 queries x 4 keys, or x 64 dimensions, are 16 sums

inline __mmask16 first_lanes(std::int64_t n) { return static_cast<__mmask16>((1U << n) - 1U); }

inline f32x16 set1(float x) { return _mm512_set1_ps(x); }
inline f32x16 load(const float* p) { return _mm512_loadu_ps(p); }
inline f32x16 load_part(const float* p, std::int64_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
inline f32x16 load(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline f32x16 load_part(const std::uint16_t* p, std::int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}
inline void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a); }
inline void store_part(float* p, f32x16 a, std::int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), a); }
inline void store_half(std::uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(std::uint16_t* p, f32x16 a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i high = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);  // halves to even
  const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i all = _mm512_mask_blend_epi32(nan, _mm512_srli_epi32(up, 16), quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(all));
}
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
inline f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
inline f32x16 sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
inline f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
inline f32x16 div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
inline f32x16 larger(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }  // b where either is NaN
inline f32x16 negative_abs(f32x16 a) { return _mm512_or_ps(a, _mm512_set1_ps(-0.0F)); }
inline f32x16 if_less(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
inline f32x16 power_of_two(f32x16 t) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3F800000)));
}
inline f32x16 swap_pairs(f32x16 a) { return _mm512_permute_ps(a, 0xB1); }
inline f32x16 repeat_pairs(const float* p) {
  const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
}
inline f32x16 negate_even(f32x16 a) {
  return _mm512_castsi512_ps(
      _mm512_xor_epi32(_mm512_castps_si512(a), _mm512_set1_epi64(static_cast<long long>(0x80000000U))));
}
// By halves: j and j + 8, j and j + 4, j and j + 2, j and j + 1.
inline float sum_lanes(f32x16 a) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
// out[i] = sum_lanes(a[i]) * factor, the same sums, side by side.
inline void sum_lanes_of_4(const f32x16 (&a)[4], float factor, float* out) {
  const auto halves = [](f32x16 x, f32x16 y) {  // lanes j + (j + 8) of x, then of y
    return _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
  };
  const f32x16 ab = halves(a[0], a[1]);
  const f32x16 cd = halves(a[2], a[3]);
  const f32x16 four = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  const f32x16 two = _mm512_add_ps(four, _mm512_permute_ps(four, 0x4E));
  const f32x16 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0xB1));  // in each four lanes, four times
  const __m512i firsts = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 4, 8, 12));
  const __m128 sums = _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one));
  _mm_storeu_ps(out, _mm_mul_ps(sums, _mm_set1_ps(factor)));
}
// Of two registers: the lower half of x and the upper one of y, and what is left, in the other order.
inline f32x16 low_and_high(f32x16 x, f32x16 y) { return _mm512_mask_blend_ps(0xFF00, x, y); }
inline f32x16 high_and_low(f32x16 x, f32x16 y) { return _mm512_shuffle_f32x4(x, y, 0x4E); }
// The same of fours of lanes, of pairs and of lanes, which alternate.
inline f32x16 even_and_odd_fours(f32x16 x, f32x16 y) { return _mm512_mask_blend_ps(0xF0F0, x, y); }
inline f32x16 swap_fours(f32x16 a) { return _mm512_shuffle_f32x4(a, a, 0xB1); }
inline f32x16 even_and_odd_pairs(f32x16 x, f32x16 y) { return _mm512_mask_blend_ps(0xCCCC, x, y); }
inline f32x16 odd_and_even_pairs(f32x16 x, f32x16 y) { return _mm512_shuffle_ps(x, y, 0x4E); }
inline f32x16 even_and_odd(f32x16 x, f32x16 y) { return _mm512_mask_blend_ps(0xAAAA, x, y); }
// Lanes as add_quarters() has them (see scores_of_few.inl): keys 0 4 8 12, 2 6 10 14, 1 5 9 13 and 3 7 11 15, of which the two
// in the middle of each four are exchanged.
inline f32x16 in_order_of_keys(f32x16 a) {
  const __m512i from = _mm512_setr_epi32(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
  return _mm512_permutexvar_ps(from, a);
}
// Compilers would rather load a number for each use of it than once, and loads are what is scarce.
inline f32x16 in_register(f32x16 a) {
#if defined(__GNUC__)
  __asm__("" : "+v"(a));
#endif
  return a;
}
// a[j] gets element j of each
inline void transpose(f32x16 (&a)[16]) {
  // Each step swaps blocks of 1, 2, 4 and 8 elements across the diagonal.
  const auto swap = [&](int step, auto low, auto high) {
    for (int i = 0; i < 16; ++i) {
      if ((i & step) != 0) continue;
      const f32x16 x = a[i];
      a[i] = low(x, a[i + step]);
      a[i + step] = high(x, a[i + step]);
    }
  };
  swap(
      1, [](f32x16 x, f32x16 y) { return _mm512_mask_blend_ps(0xAAAA, x, swap_pairs(y)); },
      [](f32x16 x, f32x16 y) { return _mm512_mask_blend_ps(0xAAAA, swap_pairs(x), y); });
  swap(
      2, [](f32x16 x, f32x16 y) { return _mm512_shuffle_ps(x, y, 0x44); },
      [](f32x16 x, f32x16 y) { return _mm512_shuffle_ps(x, y, 0xEE); });
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
  const __m512i high = _mm512_setr_epi32(4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
  swap(
      4, [&](f32x16 x, f32x16 y) { return _mm512_permutex2var_ps(x, low, y); },
      [&](f32x16 x, f32x16 y) { return _mm512_permutex2var_ps(x, high, y); });
  swap(
      8, [](f32x16 x, f32x16 y) { return _mm512_shuffle_f32x4(x, y, 0x44); },
      [](f32x16 x, f32x16 y) { return _mm512_shuffle_f32x4(x, y, 0xEE); });
}
inline float max_lane(f32x16 a) { return _mm512_reduce_max_ps(a); }

inline f32x16 truncate(f32x16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
inline float min_lane(f32x16 a) { return _mm512_reduce_min_ps(a); }
inline void store_int8(std::int8_t* p, f32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(a)));
}

// Integer dot products: 16 rows of 4 bytes each, times 4 bytes of one token.
using i32x16 = __m512i;
inline f32x16 to_float(i32x16 a) { return _mm512_cvtepi32_ps(a); }
inline f32x16 load_bytes(const std::uint8_t* p) { return _mm512_loadu_ps(p); }
inline __m512i repeat_quad(const std::int8_t* x) {
  int quad;
  __builtin_memcpy(&quad, x, 4);
  return _mm512_set1_epi32(quad);
}

// 16 rows of 4 unsigned bytes, below 128 where they are multiplied.
using bytes64 = __m512i;
inline bytes64 load_bytes64(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_bytes64(std::uint8_t* p, bytes64 a) { _mm512_storeu_si512(p, a); }
// Each row's four bytes as one number: down by kShift bits, or up.
template <int kShift>
inline bytes64 shift(bytes64 a) {
  if constexpr (kShift > 0) return _mm512_srli_epi32(a, kShift);
  if constexpr (kShift < 0) return _mm512_slli_epi32(a, -kShift);
  return a;
}
inline bytes64 keep(bytes64 a, int mask) { return _mm512_and_si512(a, _mm512_set1_epi32(mask)); }
inline bytes64 either(bytes64 a, bytes64 b) { return _mm512_or_si512(a, b); }
// Byte I of each row.
template <int I>
inline f32x16 byte_of(bytes64 a) {
  constexpr int kNone = static_cast<int>(0x80808000U);  // zeros above it
  return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(
      a, _mm512_broadcast_i32x4(_mm_setr_epi32(kNone + I, kNone + I + 4, kNone + I + 8, kNone + I + 12))));
}
inline f32x16 sixteen_from(float first) {
  return _mm512_add_ps(_mm512_set1_ps(first), _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}
// What number_of's results are multiples of.
template <int kBits>
constexpr float kNumberUnit = kBits <= 5 ? 1.0F : 0x1p24F;
// Byte I of each row, a number of kBits, less kOffset. Up to 5 bits are looked up in a table of floats, which takes the
// lowest bits of an index and leaves the rest. More become an integer's highest byte, where they have their sign.
template <int kBits, int kOffset, int I>
inline f32x16 number_of(bytes64 a) {
  if constexpr (kBits <= 5) {
    const __m512i index = shift<8 * I>(a);
    if constexpr (kBits <= 4) return _mm512_permutexvar_ps(index, sixteen_from(-kOffset));
    return _mm512_permutex2var_ps(sixteen_from(-kOffset), index, sixteen_from(16 - kOffset));
  }
  constexpr int kTop = static_cast<int>(0x00808080U) + (I << 24);  // zeros below it
  const __m128i places = _mm_setr_epi32(kTop, kTop + (4 << 24), kTop + (8 << 24), kTop + (12 << 24));
  const __m512i less = _mm512_sub_epi8(a, _mm512_set1_epi8(static_cast<char>(kOffset)));
  return _mm512_cvtepi32_ps(_mm512_shuffle_epi8(less, _mm512_broadcast_i32x4(places)));
}
inline f32x16 load_int8(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// The half at p, in all lanes.
inline f32x16 set1_half(const std::uint16_t* p) { return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(*p))); }
inline bytes64 repeat_word(const std::uint32_t* x) { return _mm512_set1_epi32(static_cast<int>(*x)); }
inline f32x16 as_floats(bytes64 a) { return _mm512_castsi512_ps(a); }
inline f32x16 load_bf16(const std::uint16_t* p) {
  const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
inline i32x16 to_int(f32x16 a) { return _mm512_cvttps_epi32(a); }
// *x in the low 16 bits of all lanes
inline __m512i repeat_low(const std::int32_t* x) { return _mm512_set1_epi32(static_cast<std::uint16_t>(*x)); }
inline i32x16 dot_zero() { return _mm512_setzero_si512(); }
// (*start << shift) in all lanes
inline i32x16 dot_start(const std::int32_t* start, int shift) {
  return _mm512_sll_epi32(_mm512_set1_epi32(*start), _mm_cvtsi32_si128(shift));
}

#include "backend/cpu/isa/doubles_avx512.inl"
#include "backend/cpu/isa/flush_x86.inl"
#include "backend/cpu/isa/prefetch_x86.inl"
#include "backend/cpu/scores_of_few.inl"
#include "backend/cpu/scores_of_many.inl"
