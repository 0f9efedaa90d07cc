// Which kernels run: the best that this machine has, or the ones that are asked for by name.
#pragma once

#include <string_view>

#include "backend/cpu/kernel_table.h"

namespace llama2cpp {

// What the CPU and the operating system support. One definition for each processor family, chosen by CMake.
bool cpu_has_avx2();
bool cpu_has_avx2_vnni();
bool cpu_has_avx512();
bool cpu_has_avx512_vnni();
bool cpu_has_avx512_bf16();
bool cpu_has_neon();
bool cpu_has_neon_dotprod();
bool cpu_has_neon_i8mm();

// A set's name ("avx512") chooses the best of its variants, a variant's ("avx512-base") that one, and empty the best of
// all. Throws std::invalid_argument for an unknown name and for an ISA that the machine or the build lacks.
const KernelTable& select_kernels(std::string_view isa, Arithmetic arithmetic = Arithmetic::contract);

}  // namespace llama2cpp
