// THE list of instruction sets, best last.
#include "backend/cpu/isa/select.h"

#include <string>

#include "core/check.h"

namespace llama2cpp {
namespace {

struct Isa {
  std::string_view name;
  std::string_view variant;
  const KernelTable* (*kernels)(Arithmetic);
  bool (*supported)();
  std::string_view needs;
};

bool always() { return true; }

constexpr Isa kIsas[] = {
    {"reference", "reference", reference_kernels, always, ""},
    {"scalar", "scalar", scalar_kernels, always, ""},
    {"neon", "neon-base", neon_kernels, cpu_has_neon, "an aarch64 processor"},
    {"neon", "neon-dotprod", neon_dotprod_kernels, cpu_has_neon_dotprod, "an aarch64 processor with FEAT_DotProd"},
    {"neon", "neon-i8mm", neon_i8mm_kernels, cpu_has_neon_i8mm, "an aarch64 processor with FEAT_DotProd and FEAT_I8MM"},
    {"avx2", "avx2-base", avx2_kernels, cpu_has_avx2, "AVX2, FMA and F16C"},
    {"avx2", "avx2-vnni", avx2_vnni_kernels, cpu_has_avx2_vnni, "AVX2, FMA, F16C and AVX-VNNI"},
    {"avx512", "avx512-base", avx512_kernels, cpu_has_avx512, "AVX-512 F, BW, DQ and VL"},
    {"avx512", "avx512-vnni", avx512_vnni_kernels, cpu_has_avx512_vnni, "AVX-512 F, BW, DQ, VL and VNNI"},
    {"avx512", "avx512-bf16", avx512_bf16_kernels, cpu_has_avx512_bf16, "AVX-512 F, BW, DQ, VL, VNNI and BF16"},
};

}  // namespace

const KernelTable& select_kernels(std::string_view isa, Arithmetic arithmetic) {
  const KernelTable* best = nullptr;
  std::string known;
  std::string_view lacking;
  for (const Isa& each : kIsas) {
    known += cat(known.empty() ? "" : ", ", each.variant);
    if (!isa.empty() && each.name != isa && each.variant != isa) continue;
    if (each.kernels(arithmetic) != nullptr && each.supported()) {
      best = each.kernels(arithmetic);
    } else if (lacking.empty()) {
      lacking = each.needs;
    }
  }
  if (best != nullptr) return *best;
  LLAMA2CPP_CHECK(lacking.empty(), "LLAMA2CPP_ISA is '", isa, "', but this machine lacks ", lacking);
  throw std::invalid_argument(cat("LLAMA2CPP_ISA is '", isa, "', expected one of: ", known, ", neon, avx2, avx512"));
}

}  // namespace llama2cpp
