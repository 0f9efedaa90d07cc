// a * b + c with denormals as zeros, in and out, in the arithmetic of any machine: for scalar kernels, and where a machine's
// own mode would take too much for zero. Whether a result is a denormal is judged after it is rounded, as x86 does.

inline float flushed(float x) { return fabsf(x) < 0x1p-126F ? copysignf(0.0F, x) : x; }

inline float fma_flushed(float a, float b, float c) {
  a = flushed(a);
  b = flushed(b);
  c = flushed(c);
  const float r = fmaf(a, b, c);
  if (!(fabsf(r) <= 0x1p-126F)) return r;
  // Rounded to 24 bits without a least exponent, is it the least normal number? Factors of 8 bits: 53 bits decide it.
  const double exact = ::fma(static_cast<double>(a), static_cast<double>(b), static_cast<double>(c));
  return copysignf(fabs(exact) < 0x1p-126 - 0x1p-151 ? 0.0F : 0x1p-126F, r);
}
