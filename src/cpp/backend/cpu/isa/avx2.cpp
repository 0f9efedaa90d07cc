// Kernels for AVX2 with FMA and F16C, without AVX-VNNI.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/avx2.inl"

// Pairs of products are added in 16 bits: 2 * 128 * 127 fits, where unsigned bytes would not.
struct quads16 {
  __m256i lo, hi;  // signed
};
inline quads16 load_quads(const std::uint8_t* p) {
  const __m256i bias = _mm256_set1_epi8(static_cast<char>(0x80));
  return {_mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), bias),
          _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)), bias)};
}
inline i32x16 dot_start_128(const std::int32_t*) { return dot_zero(); }  // the weights are signed here
inline __m256i dot_quads(__m256i sum, __m256i w, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline i32x16 dot_quads(i32x16 sum, quads16 w, const std::int8_t* x) {
  const __m256i all = repeat_quad(x);
  return {dot_quads(sum.lo, w.lo, all), dot_quads(sum.hi, w.hi, all)};
}
// sum + w * *x, where both factors fit into 16 bits
inline i32x16 add_product(i32x16 sum, i32x16 w, const std::int32_t* x) {
  const __m256i all = repeat_low(x);
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(w.lo, all)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(w.hi, all))};
}
inline i32x16 dot_small(i32x16 sum, bytes64 w, const std::int8_t* x) {
  const __m256i all = repeat_quad(x);
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(_mm256_maddubs_epi16(w.lo, all), ones)),
          _mm256_add_epi32(sum.hi, _mm256_madd_epi16(_mm256_maddubs_epi16(w.hi, all), ones))};
}

#include "backend/cpu/kernels.inl"

}  // namespace

const KernelTable* avx2_kernels(Arithmetic arithmetic) noexcept { return kernels(arithmetic); }

}  // namespace llama2cpp
