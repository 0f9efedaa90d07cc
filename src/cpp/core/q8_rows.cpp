// Plain loops: what reads a cache as floats is seldom asked for.
#include "core/q8_rows.h"

#include "core/half.h"

namespace llama2cpp {

void widen_q8(const Q8Block* blocks, std::int64_t n, float* out) {
  for (std::int64_t begin = 0; begin < n; begin += kQ8Numbers) {
    const Q8Block& block = blocks[begin / kQ8Numbers];
    const float scale = half_to_float(block.scale);
    for (std::int64_t i = 0; i < kQ8Numbers; ++i) out[begin + i] = static_cast<float>(block.q[i]) * scale;
  }
}

}  // namespace llama2cpp
