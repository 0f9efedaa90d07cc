// What processors other than aarch64 link in place of its kernels.
#include "backend/cpu/isa/select.h"

namespace llama2cpp {

const KernelTable* neon_kernels(Arithmetic) noexcept { return nullptr; }
const KernelTable* neon_dotprod_kernels(Arithmetic) noexcept { return nullptr; }
const KernelTable* neon_i8mm_kernels(Arithmetic) noexcept { return nullptr; }
bool cpu_has_neon() { return false; }
bool cpu_has_neon_dotprod() { return false; }
bool cpu_has_neon_i8mm() { return false; }

}  // namespace llama2cpp
