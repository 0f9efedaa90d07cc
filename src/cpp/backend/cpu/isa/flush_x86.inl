// Denormals as zeros, in and out: two bits of MXCSR.

// What it calls throws nothing: no destructor sets the mode back, whose code for exceptions would bring a symbol that files
// of other instruction sets share (isa_symbols).
inline void run_flushed(const PairBlock& b, void (*multiply)(const PairBlock&)) {
  constexpr unsigned kOut = 0x8000;
  constexpr unsigned kIn = 0x40;
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | kOut | kIn);
  multiply(b);
  _mm_setcsr(before);
}
inline f32x16 fma_flushed(f32x16 a, f32x16 b, f32x16 c) { return fma(a, b, c); }  // where that is the mode
