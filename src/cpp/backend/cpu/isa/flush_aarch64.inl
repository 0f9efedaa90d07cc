// Denormals as zeros, in and out: a bit of FPCR. These machines judge a result before they round it, so that one which
// rounds up to the least normal number becomes zero as well, which it is not by the contract. They remember that a result
// became zero (FPSR's UFC). Then what is left of a block's products is done again, as flushed_fma.inl does it: with weights
// of models that never happens.

inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#include "backend/cpu/isa/flushed_fma.inl"

// Calls `multiply` in that mode, and says whether a result became zero. What it calls throws nothing: no destructor sets the
// mode back, whose code for exceptions would bring a symbol that files of other instruction sets share (isa_symbols).
inline bool multiply_flushed(const PairBlock& b, void (*multiply)(const PairBlock&)) {
  constexpr std::uint64_t kFlush = 1U << 24;
  constexpr std::uint64_t kUnderflow = 1U << 3;
  std::uint64_t before;
  std::uint64_t seen;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before) : : "memory");
  __asm__ volatile("msr fpcr, %0" : : "r"(before | kFlush) : "memory");
  __asm__ volatile("msr fpsr, xzr" : : : "memory");
  multiply(b);
  __asm__ volatile("mrs %0, fpsr" : "=r"(seen) : : "memory");
  __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
  return (seen & kUnderflow) != 0;
}

// In plain loops, in the usual mode.
inline void multiply_exactly(const PairBlock& b) {
  const auto number = [](std::uint32_t bits) {
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  };
  for (std::int64_t row = 0; row < (b.n_panels - 1) * 16 + b.last_rows; ++row) {
    const std::uint32_t* const w = b.panels + row / 16 * b.panel_stride + row % 16;
    for (std::int64_t t = 0; t < b.n_tokens; ++t) {
      float& out = b.out[t * b.out_stride + row];
      float sum = b.first ? 0.0F : out;
      for (std::int64_t k = 0; k < b.n_k; ++k) {
        const std::uint32_t x = b.x[k * b.n_tokens + t];
        sum = fma_flushed(number(w[k * 16] & 0xFFFF0000U), number(x & 0xFFFF0000U), sum);
        sum = fma_flushed(number(w[k * 16] << 16), number(x << 16), sum);
      }
      out = sum;
    }
  }
}

// Some panels at a time, whose sums so far are kept in case that they are needed again.
inline void run_flushed(const PairBlock& b, void (*multiply)(const PairBlock&)) {
  constexpr std::int64_t kPanels = 8;
  float before[kTileTokens * kPanels * 16];
  for (std::int64_t panel = 0; panel < b.n_panels; panel += kPanels) {
    PairBlock part = b;
    part.panels += panel * b.panel_stride;
    part.out += panel * 16;
    if (panel + kPanels < b.n_panels) {
      part.n_panels = kPanels;
      part.last_rows = 16;
    } else {
      part.n_panels = b.n_panels - panel;
    }
    const std::int64_t rows = (part.n_panels - 1) * 16 + part.last_rows;
    const auto size = static_cast<std::size_t>(rows) * sizeof(float);
    const auto kept = [&](std::int64_t t) { return before + t * kPanels * 16; };
    for (std::int64_t t = 0; !b.first && t < b.n_tokens; ++t) {
      __builtin_memcpy(kept(t), part.out + t * b.out_stride, size);
    }
    if (!multiply_flushed(part, multiply)) continue;
    for (std::int64_t t = 0; !b.first && t < b.n_tokens; ++t) {
      __builtin_memcpy(part.out + t * b.out_stride, kept(t), size);
    }
    multiply_exactly(part);
  }
}
inline f32x16 fma_flushed(f32x16 a, f32x16 b, f32x16 c) { return fma(a, b, c); }  // where that is the mode
