// Kernels for NEON (aarch64), without dot products of bytes.
#include <arm_neon.h>

#include "backend/cpu/kernel_table.h"
#include "core/glibc_float.h"

namespace llama2cpp {
namespace {

#include "backend/cpu/isa/neon.inl"

inline i32x16 dot_quads(i32x16 sum, const quads16& w, const std::int8_t* x) {
  const int8x8_t twice = vreinterpret_s8_s32(vdup_n_s32(quad_of(x)));
  for (int i = 0; i < 4; ++i) {
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w.q[i]), twice));    // two halves of two rows
    const int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(w.q[i]), twice));  // two halves of the next two
    sum.q[i] = vaddq_s32(sum.q[i], vpaddq_s32(low, high));
  }
  return sum;
}
inline i32x16 dot_small(i32x16 sum, const bytes64& w, const std::int8_t* x) {
  const auto signed_rows = [&](int i) { return vreinterpretq_s8_u8(w.q[i]); };
  return dot_quads(sum, {{signed_rows(0), signed_rows(1), signed_rows(2), signed_rows(3)}}, x);
}

// In this order: each builds on the one before.
// clang-format off
#include "backend/cpu/elementwise.inl"
#include "backend/cpu/attention.inl"
#include "backend/cpu/matmul_blocks.inl"
#include "backend/cpu/open_blocks.inl"
#include "backend/cpu/llm_int8.inl"
#include "backend/cpu/wide_blocks.inl"
#include "backend/cpu/matmul.inl"
#include "backend/cpu/isa/doubles_neon.inl"
#include "backend/cpu/llama2c_order.inl"
// clang-format on

constexpr KernelTable kTable = make_table("neon");
constexpr KernelTable kLlama2cTable = llama2c_order::in_order(kTable);

}  // namespace

const KernelTable* neon_kernels(Arithmetic arithmetic) {
  return arithmetic == Arithmetic::llama2c ? &kLlama2cTable : &kTable;
}

}  // namespace llama2cpp
