// Kernels for NEON (aarch64) with FEAT_DotProd, which multiplies and adds four bytes of each lane in one
// instruction.
#include <arm_neon.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/neon.inl"

inline i32x16 dot_quads(i32x16 sum, const quads16& w, const std::int8_t* x) {
  const int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(quad_of(x)));
  for (int i = 0; i < 4; ++i) sum.q[i] = vdotq_s32(sum.q[i], w.q[i], all);
  return sum;
}

#include "backend/cpu/kernels.inl"

}  // namespace

const KernelTable* neon_dotprod_kernels(Arithmetic arithmetic) noexcept {
  static const KernelTable contract = with_integer_products(*neon_kernels(Arithmetic::contract));
  static const KernelTable llama2c = with_integer_products(*neon_kernels(Arithmetic::llama2c));
  return arithmetic == Arithmetic::llama2c ? &llama2c : &contract;
}

}  // namespace llama2cpp
