// What an aarch64 processor supports, as its operating system tells.
#include "backend/cpu/isa/select.h"

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_WIN32)
#include <windows.h>
#endif

namespace llama2cpp {

bool cpu_has_neon() { return true; }  // part of every aarch64

namespace {

#if defined(__APPLE__)
bool has_feature(const char* name) {
  int has = 0;
  size_t bytes = sizeof(has);
  return sysctlbyname(name, &has, &bytes, nullptr, 0) == 0 && has != 0;
}
#endif

}  // namespace

bool cpu_has_neon_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kAsimdDp = 1UL << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kAsimdDp) != 0;
#elif defined(__APPLE__)
  return has_feature("hw.optional.arm.FEAT_DotProd");
#elif defined(_WIN32)
  constexpr DWORD kDotProducts = 43;  // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE
  return IsProcessorFeaturePresent(kDotProducts) != 0;
#else
  return false;
#endif
}

// Its kernels use dot products too.
bool cpu_has_neon_i8mm() {
  if (!cpu_has_neon_dotprod()) return false;
#if defined(__linux__)
  constexpr unsigned long kI8mm = 1UL << 13;  // HWCAP2_I8MM
  return (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(__APPLE__)
  return has_feature("hw.optional.arm.FEAT_I8MM");
#elif defined(_WIN32)
  constexpr DWORD kI8mm = 66;  // PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE
  return IsProcessorFeaturePresent(kI8mm) != 0;
#else
  return false;
#endif
}

}  // namespace llama2cpp
