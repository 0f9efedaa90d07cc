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

#include "backend/cpu/kernels.inl"

}  // namespace

const KernelTable* neon_kernels(Arithmetic arithmetic) noexcept { return kernels(arithmetic); }

}  // namespace llama2cpp
