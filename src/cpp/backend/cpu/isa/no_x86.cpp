// What processors other than x86-64 link in place of its kernels.
#include "backend/cpu/isa/select.h"

namespace llama2cpp {

const KernelTable* avx2_kernels(Arithmetic) noexcept { return nullptr; }
const KernelTable* avx2_vnni_kernels(Arithmetic) noexcept { return nullptr; }
const KernelTable* avx512_kernels(Arithmetic) noexcept { return nullptr; }
const KernelTable* avx512_vnni_kernels(Arithmetic) noexcept { return nullptr; }
const KernelTable* avx512_bf16_kernels(Arithmetic) noexcept { return nullptr; }
bool cpu_has_avx2() { return false; }
bool cpu_has_avx2_vnni() { return false; }
bool cpu_has_avx512() { return false; }
bool cpu_has_avx512_vnni() { return false; }
bool cpu_has_avx512_bf16() { return false; }

}  // namespace llama2cpp
