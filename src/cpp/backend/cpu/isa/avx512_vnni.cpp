// Kernels for AVX-512 with VNNI, which multiplies and adds four bytes of each lane in one instruction.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/avx512.inl"

constexpr int kPairTokens = 6;

using quads16 = __m512i;  // weights + 128
inline quads16 load_quads(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
inline i32x16 dot_start_128(const std::int32_t* start) { return _mm512_slli_epi32(_mm512_set1_epi32(*start), 7); }
inline i32x16 dot_quads(i32x16 sum, quads16 w, const std::int8_t* x) {
  return _mm512_dpbusd_epi32(sum, w, repeat_quad(x));
}
// sum + w * *x, where both factors fit into 16 bits
inline i32x16 add_product(i32x16 sum, i32x16 w, const std::int32_t* x) {
  return _mm512_dpwssd_epi32(sum, w, repeat_low(x));
}
inline i32x16 dot_small(i32x16 sum, bytes64 w, const std::int8_t* x) { return dot_quads(sum, w, x); }

#include "backend/cpu/kernels.inl"

}  // namespace

const KernelTable* avx512_vnni_kernels(Arithmetic arithmetic) noexcept {
  static const KernelTable contract = with_integer_products(*avx512_kernels(Arithmetic::contract));
  static const KernelTable llama2c = with_integer_products(*avx512_kernels(Arithmetic::llama2c));
  return arithmetic == Arithmetic::llama2c ? &llama2c : &contract;
}

}  // namespace llama2cpp
