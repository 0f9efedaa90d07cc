// Kernels for AVX-512 with VNNI and BF16, which does both products of a pair in one instruction, with denormals as zeros.
#include <immintrin.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/avx512.inl"
#include "backend/cpu/tiles.inl"
// After them.
#include "backend/cpu/matmul_pairs.inl"

struct PairProducts {
  static void run(const PairBlock& b, void (*multiply)(const PairBlock&)) { multiply(b); }

  template <int P, int N>
  static void add(const std::uint32_t* panels, std::int64_t stride, const std::uint32_t* x, f32x16 (&sum)[P][N]) {
    __m512bh row[P];
    for (int p = 0; p < P; ++p) row[p] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(panels + p * stride));
    for (int n = 0; n < N; ++n) {
      const auto token = reinterpret_cast<__m512bh>(repeat_word(x + n));
      for (int p = 0; p < P; ++p) sum[p][n] = _mm512_dpbf16_ps(sum[p][n], row[p], token);
    }
  }
};

KernelTable with_pair_products(KernelTable other) noexcept {
  other.name = kIsaName;
  other.matmul_pairs = matmul_pairs<PairProducts>;
  return other;
}

}  // namespace

const KernelTable* avx512_bf16_kernels(Arithmetic arithmetic) noexcept {
  static const KernelTable contract = with_pair_products(*avx512_vnni_kernels(Arithmetic::contract));
  static const KernelTable llama2c = with_pair_products(*avx512_vnni_kernels(Arithmetic::llama2c));
  return arithmetic == Arithmetic::llama2c ? &llama2c : &contract;
}

}  // namespace llama2cpp
