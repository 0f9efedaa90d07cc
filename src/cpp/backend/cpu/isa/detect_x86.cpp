// What an x86-64 processor supports, and whether the operating system saves its registers.
#include "backend/cpu/isa/select.h"

#ifdef _MSC_VER
#include <intrin.h>
#endif

namespace llama2cpp {

#ifdef _MSC_VER

namespace {

// CPUID leaf 7 EBX bit, where also leaf 1 says OSXSAVE, FMA and F16C and the system saves the `state` registers.
bool has(int leaf7_bits, unsigned long long state) {
  int leaf1[4];
  int leaf7[4];
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  constexpr int kOsxsave = 1 << 27;
  constexpr int kFma = 1 << 12;
  constexpr int kF16c = 1 << 29;
  constexpr int kNeeded = kOsxsave | kFma | kF16c;
  return (leaf1[2] & kNeeded) == kNeeded && (leaf7[1] & leaf7_bits) == leaf7_bits && (_xgetbv(0) & state) == state;
}

}  // namespace

bool cpu_has_avx2() { return has(1 << 5, 0x6); }
bool cpu_has_avx512() { return cpu_has_avx2() && has((1 << 16) | (1 << 17) | (1 << 30) | (1 << 31), 0xE6); }

#else

bool cpu_has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool cpu_has_avx512() {
  return cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#endif

}  // namespace llama2cpp
