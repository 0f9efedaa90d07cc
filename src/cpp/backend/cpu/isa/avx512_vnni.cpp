// Kernels for AVX-512 with VNNI, which multiplies and adds four bytes of each lane in one instruction.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/avx512.inl"

using quads16 = __m512i;  // weights + 128
inline quads16 load_quads(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
inline i32x16 dot_start(std::int32_t offset) { return _mm512_set1_epi32(offset); }
inline i32x16 dot_quads(i32x16 sum, quads16 w, const std::int8_t* x) {
  return _mm512_dpbusd_epi32(sum, w, repeat_quad(x));
}

// In this order: each builds on the one before.
// clang-format off
#include "backend/cpu/elementwise.inl"
#include "backend/cpu/attention.inl"
#include "backend/cpu/matmul.inl"
// clang-format on

constexpr KernelTable kTable = make_table("avx512");

}  // namespace

const KernelTable* avx512_vnni_kernels() { return &kTable; }

}  // namespace llama2cpp
