// The kernels of int8 activations and of f16 do the rounding.
#include "backend/cpu/q8_cache.h"

#include <algorithm>

namespace llama2cpp {

void narrow_q8(const KernelTable& kernels, const float* x, std::int64_t n, Q8Block* blocks) {
  constexpr std::int64_t kMost = 16;  // blocks at once
  for (std::int64_t begin = 0; begin < n; begin += kMost * kQ8Numbers) {
    const std::int64_t groups = std::min(kMost, (n - begin) / kQ8Numbers);
    std::int8_t q[kMost * kQ8Numbers];
    float scales[kMost];
    std::uint16_t halves[kMost];
    kernels.quantize(x + begin, groups, kQ8Numbers, q, scales);
    kernels.narrow(scales, halves, groups);
    for (std::int64_t i = 0; i < groups; ++i) {
      Q8Block& block = blocks[begin / kQ8Numbers + i];
      block.scale = halves[i];
      std::copy_n(q + i * kQ8Numbers, kQ8Numbers, block.q);
    }
  }
}

}  // namespace llama2cpp
