// Kernels for AVX-512 (F, BW, DQ, VL) without VNNI.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/avx512.inl"

constexpr int kPairTokens = 0;  // what multiplies bytes here needs registers of its own

// Pairs of products are added in 16 bits: 2 * 128 * 127 fits, where unsigned bytes would not.
struct quads16 {
  __m512i magnitude;
  __mmask64 negative;
};
inline quads16 load_quads(const std::uint8_t* p) {
  const __m512i w = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  return {_mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
}
inline i32x16 dot_start_128(const std::int32_t*) { return dot_zero(); }  // the weights are signed here
inline i32x16 dot_quads(i32x16 sum, quads16 w, const std::int8_t* x) {
  const __m512i quad = repeat_quad(x);
  const __m512i signed_quad = _mm512_mask_sub_epi8(quad, w.negative, _mm512_setzero_si512(), quad);
  const __m512i pairs = _mm512_maddubs_epi16(w.magnitude, signed_quad);
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
// sum + w * *x, where both factors fit into 16 bits
inline i32x16 add_product(i32x16 sum, i32x16 w, const std::int32_t* x) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(w, repeat_low(x)));
}
inline i32x16 dot_small(i32x16 sum, bytes64 w, const std::int8_t* x) {
  const __m512i pairs = _mm512_maddubs_epi16(w, repeat_quad(x));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}

#include "backend/cpu/kernels.inl"

}  // namespace

const KernelTable* avx512_kernels(Arithmetic arithmetic) noexcept { return kernels(arithmetic); }

}  // namespace llama2cpp
