// Kernels for AVX2 with FMA and F16C and AVX-VNNI, which multiplies and adds four bytes of each lane in one
// instruction.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/avx2.inl"

// 16 rows of 4 bytes: weights + 128.
struct quads16 {
  __m256i lo, hi;
};
inline quads16 load_quads(const std::uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline i32x16 dot_start_128(const std::int32_t* start) { return dot_start(start, 7); }
inline i32x16 dot_quads(i32x16 sum, quads16 w, const std::int8_t* x) {
  const __m256i all = repeat_quad(x);
  return {_mm256_dpbusd_avx_epi32(sum.lo, w.lo, all), _mm256_dpbusd_avx_epi32(sum.hi, w.hi, all)};
}
// sum + w * *x, where both factors fit into 16 bits
inline i32x16 add_product(i32x16 sum, i32x16 w, const std::int32_t* x) {
  const __m256i all = repeat_low(x);
  return {_mm256_dpwssd_avx_epi32(sum.lo, w.lo, all), _mm256_dpwssd_avx_epi32(sum.hi, w.hi, all)};
}
inline i32x16 dot_small(i32x16 sum, bytes64 w, const std::int8_t* x) { return dot_quads(sum, {w.lo, w.hi}, x); }

#include "backend/cpu/kernels.inl"

}  // namespace

const KernelTable* avx2_vnni_kernels(Arithmetic arithmetic) noexcept {
  static const KernelTable contract = with_integer_products(*avx2_kernels(Arithmetic::contract));
  static const KernelTable llama2c = with_integer_products(*avx2_kernels(Arithmetic::llama2c));
  return arithmetic == Arithmetic::llama2c ? &llama2c : &contract;
}

}  // namespace llama2cpp
