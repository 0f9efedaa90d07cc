// Kernels for AVX-512 with VNNI, which multiplies and adds four bytes of each lane in one instruction.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/avx512.inl"

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

// In this order: each builds on the one before.
// clang-format off
#include "backend/cpu/elementwise.inl"
#include "backend/cpu/scores_of_many.inl"
#include "backend/cpu/attention.inl"
#include "backend/cpu/matmul_blocks.inl"
#include "backend/cpu/open_blocks.inl"
#include "backend/cpu/llm_int8.inl"
#include "backend/cpu/wide_blocks.inl"
#include "backend/cpu/matmul.inl"
#include "backend/cpu/isa/doubles_avx512.inl"
#include "backend/cpu/llama2c_order.inl"
// clang-format on

constexpr KernelTable kTable = make_table("avx512");
constexpr KernelTable kLlama2cTable = llama2c_order::in_order(kTable);

}  // namespace

const KernelTable* avx512_vnni_kernels(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::llama2c ? &kLlama2cTable : &kTable;
}

}  // namespace llama2cpp
