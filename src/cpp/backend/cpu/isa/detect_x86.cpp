// What an x86-64 processor supports, and whether the operating system saves its registers. CPUID is asked directly:
// compilers differ in which features their own question knows.
#include <cstdint>

#include "backend/cpu/isa/select.h"

#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace llama2cpp {
namespace {

struct Registers {
  std::uint32_t eax, ebx, ecx, edx;
};

#ifdef _MSC_VER

Registers cpuid(std::uint32_t leaf, std::uint32_t part = 0) {
  int r[4];
  __cpuid(r, 0);
  if (static_cast<std::uint32_t>(r[0]) < leaf) return {};
  __cpuidex(r, static_cast<int>(leaf), static_cast<int>(part));
  return {static_cast<std::uint32_t>(r[0]), static_cast<std::uint32_t>(r[1]), static_cast<std::uint32_t>(r[2]),
          static_cast<std::uint32_t>(r[3])};
}

std::uint64_t saved_state() { return _xgetbv(0); }

#else

Registers cpuid(std::uint32_t leaf, std::uint32_t part = 0) {
  Registers r{};  // zeros where the processor has no such leaf
  __get_cpuid_count(leaf, part, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

std::uint64_t saved_state() {
  std::uint32_t low;
  std::uint32_t high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

#endif

constexpr std::uint32_t bit(int index) { return std::uint32_t{1} << index; }

bool all(std::uint64_t bits, std::uint64_t wanted) { return (bits & wanted) == wanted; }

}  // namespace

bool cpu_has_avx2() {
  constexpr std::uint32_t kFma = bit(12);
  constexpr std::uint32_t kOsxsave = bit(27);
  constexpr std::uint32_t kAvx = bit(28);
  constexpr std::uint32_t kF16c = bit(29);
  constexpr std::uint32_t kAvx2 = bit(5);  // of leaf 7
  return all(cpuid(1).ecx, kFma | kOsxsave | kAvx | kF16c) && all(cpuid(7).ebx, kAvx2) && all(saved_state(), 0x6);
}

// Leaf 7 says in eax how many parts it has beside the first; asked for one that it has not, a processor may say anything.
bool cpu_has_avx2_vnni() { return cpu_has_avx2() && cpuid(7).eax >= 1 && all(cpuid(7, 1).eax, bit(4)); }

bool cpu_has_avx512() {
  constexpr std::uint32_t kFoundation = bit(16);
  constexpr std::uint32_t kDq = bit(17);
  constexpr std::uint32_t kBw = bit(30);
  constexpr std::uint32_t kVl = bit(31);
  return cpu_has_avx2() && all(cpuid(7).ebx, kFoundation | kDq | kBw | kVl) && all(saved_state(), 0xE6);
}

bool cpu_has_avx512_vnni() { return cpu_has_avx512() && all(cpuid(7).ecx, bit(11)); }

bool cpu_has_avx512_bf16() { return cpu_has_avx512_vnni() && cpuid(7).eax >= 1 && all(cpuid(7, 1).eax, bit(5)); }

}  // namespace llama2cpp
