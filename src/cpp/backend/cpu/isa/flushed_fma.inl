// a * b + c with denormals as zeros, in and out, in the arithmetic of any machine: for scalar kernels, and where a machine's
// own mode would take too much for zero. Whether a result is a denormal is judged after it is rounded, as x86 does. `fused` is
// fma, of floats and of doubles.

constexpr float kLeastNormal = 0x1p-126F;

inline float flushed(float x) { return x < kLeastNormal && x > -kLeastNormal ? x * 0.0F : x; }

inline float fma_flushed(float a, float b, float c) {
  a = flushed(a);
  b = flushed(b);
  c = flushed(c);
  const float r = fused(a, b, c);
  if (!(r <= kLeastNormal && r >= -kLeastNormal)) return r;
  // Rounded to 24 bits without a least exponent, is it the least normal number? Factors of 8 bits: 53 bits decide it.
  const double exact = fused(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
  if ((exact < 0.0 ? -exact : exact) < 0x1p-126 - 0x1p-151) return r * 0.0F;
  return exact < 0.0 ? -kLeastNormal : kLeastNormal;
}
