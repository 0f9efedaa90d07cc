// Denormals as zeros, in and out: two bits of MXCSR.

class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kOut | kIn); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr unsigned kOut = 0x8000;
  static constexpr unsigned kIn = 0x40;
  unsigned before_;
};

inline void run_flushed(const PairBlock& b, void (*multiply)(const PairBlock&)) {
  const FlushDenormals mode;
  multiply(b);
}
inline f32x16 fma_flushed(f32x16 a, f32x16 b, f32x16 c) { return fma(a, b, c); }  // where that is the mode
