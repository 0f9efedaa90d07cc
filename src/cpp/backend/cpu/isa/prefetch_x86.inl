// Asks for the cache line at p.

// In assembler for GCC, which takes loops and functions that only prefetch by the intrinsic for ones that do nothing.
inline void prefetch(const std::uint8_t* p) {
#if defined(__GNUC__) && !defined(__clang__)
  __asm__ volatile("prefetcht0 %a0" : : "p"(p));
#else
  _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
#endif
}
