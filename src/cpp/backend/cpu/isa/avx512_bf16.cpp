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

// clang 16 does not compile the intrinsic here: it ends with an error of its own.
inline f32x16 add_pairs(f32x16 sum, bytes64 row, bytes64 token) {
#ifdef __clang__
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(row), "v"(token));
  return sum;
#else
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(row), reinterpret_cast<__m512bh>(token));
#endif
}

struct PairProducts {
  static void run(const PairBlock& b, void (*multiply)(const PairBlock&)) { multiply(b); }

  template <int P, int N>
  static void add(const std::uint32_t* panels, std::int64_t stride, const std::uint32_t* x, f32x16 (&sum)[P][N]) {
    bytes64 row[P];
    for (int p = 0; p < P; ++p) row[p] = _mm512_loadu_si512(panels + p * stride);
    for (int n = 0; n < N; ++n) {
      const bytes64 token = repeat_word(x + n);
      for (int p = 0; p < P; ++p) sum[p][n] = add_pairs(sum[p][n], row[p], token);
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
