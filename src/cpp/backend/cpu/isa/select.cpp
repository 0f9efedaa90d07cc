// THE list of instruction sets, best last.
#include "backend/cpu/isa/select.h"

#include <string>

#include "core/check.h"

namespace llama2cpp {
namespace {

struct Isa {
  std::string_view name;
  const KernelTable* (*kernels)();
  bool (*supported)();
  std::string_view needs;
};

bool always() { return true; }

constexpr Isa kIsas[] = {
    {"reference", reference_kernels, always, ""},
    {"scalar", scalar_kernels, always, ""},
    {"neon", neon_kernels, cpu_has_neon, "an aarch64 processor"},
    {"avx2", avx2_kernels, cpu_has_avx2, "AVX2, FMA and F16C"},
    {"avx512", avx512_kernels, cpu_has_avx512, "AVX-512 F, BW, DQ and VL"},
};

}  // namespace

const KernelTable& select_kernels(std::string_view isa) {
  const KernelTable* best = nullptr;
  std::string known;
  for (const Isa& each : kIsas) {
    const bool usable = each.kernels() != nullptr && each.supported();
    if (each.name == isa) {
      LLAMA2CPP_CHECK(usable, "LLAMA2CPP_ISA is '", isa, "', but this machine lacks ", each.needs);
      return *each.kernels();
    }
    if (usable) best = each.kernels();
    known += (known.empty() ? "" : ", ");
    known += each.name;
  }
  LLAMA2CPP_CHECK(isa.empty(), "LLAMA2CPP_ISA is '", isa, "', expected one of: ", known);
  return *best;
}

}  // namespace llama2cpp
