// Kernels for NEON (aarch64) with FEAT_DotProd and FEAT_I8MM, which multiplies 8 columns of two rows with those of two tokens
// in one instruction. A single token is left to dot products.
#include <arm_neon.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

// In this order: each builds on the ones before.
// clang-format off
#include "backend/cpu/isa/neon.inl"
#include "backend/cpu/tiles.inl"
#include "backend/cpu/matmul_blocks.inl"
#include "backend/cpu/unpack_blocks.inl"
#include "backend/cpu/llm_int8.inl"
#include "backend/cpu/isa/i8mm.inl"
// clang-format on

// Never called, but named by what the files above have for others.
inline i32x16 dot_quads(i32x16 sum, const quads16&, const std::int8_t*) { return sum; }

KernelTable with_pairs_of_tokens(KernelTable other) noexcept {
  other.name = kIsaName;
  other.matmul_int8 = [](const Int8Block& b) {
    b.n_tokens == 1 ? neon_dotprod_kernels()->matmul_int8(b) : run_tile<Int8Pairs>(b);
  };
  other.matmul_blocks = [](const BlockCall& b) {
    b.n_tokens == 1 ? neon_dotprod_kernels()->matmul_blocks(b) : packed_in_pairs(b);
  };
  other.matmul_open = [](const BlockCall& b) {
    b.n_tokens == 1 ? neon_dotprod_kernels()->matmul_open(b) : open_in_pairs(b);
  };
  other.matmul_llm_int8 = [](const LlmInt8Call& c) {
    c.n_tokens == 1 ? neon_dotprod_kernels()->matmul_llm_int8(c) : run_tile<LlmInt8Pairs>(c);
  };
  return other;
}

}  // namespace

const KernelTable* neon_i8mm_kernels(Arithmetic arithmetic) noexcept {
  static const KernelTable contract = with_pairs_of_tokens(*neon_dotprod_kernels(Arithmetic::contract));
  static const KernelTable llama2c = with_pairs_of_tokens(*neon_dotprod_kernels(Arithmetic::llama2c));
  return arithmetic == Arithmetic::llama2c ? &llama2c : &contract;
}

}  // namespace llama2cpp
