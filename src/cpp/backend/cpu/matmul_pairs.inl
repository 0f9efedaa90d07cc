// Matmul of pairs of bf16: weights in panels of [pair][16 rows], tokens rounded to bf16. For each pair two fused
// multiply-adds, the odd k first, with denormals as zeros in and out, which is what AVX512_BF16's vdpbf16ps does in one
// instruction. Here it is done with products of floats, for all others.

#if defined(_MSC_VER)
#define LLAMA2CPP_NOINLINE __declspec(noinline)
#else
#define LLAMA2CPP_NOINLINE __attribute__((noinline))
#endif

struct FloatProducts {
  // Calls `multiply` where fma_flushed takes denormals for zeros.
  static void run(const PairBlock& b, void (*multiply)(const PairBlock&)) { run_flushed(b, multiply); }

  // sum[p][n] = the two products of row p and token n, added to it
  template <int P, int N>
  static void add(const std::uint32_t* panels, std::int64_t stride, const std::uint32_t* x, f32x16 (&sum)[P][N]) {
    const auto load_row = [&](int p) {
      return load_bytes64(reinterpret_cast<const std::uint8_t*>(panels + p * stride));
    };
    f32x16 row[P];
    for (int p = 0; p < P; ++p) row[p] = as_floats(keep(load_row(p), static_cast<int>(0xFFFF0000U)));
    for (int n = 0; n < N; ++n) {
      const f32x16 token = as_floats(keep(repeat_word(x + n), static_cast<int>(0xFFFF0000U)));
      for (int p = 0; p < P; ++p) sum[p][n] = fma_flushed(row[p], token, sum[p][n]);
    }
    for (int p = 0; p < P; ++p) row[p] = as_floats(shift<-16>(load_row(p)));
    for (int n = 0; n < N; ++n) {
      const f32x16 token = as_floats(shift<-16>(repeat_word(x + n)));
      for (int p = 0; p < P; ++p) sum[p][n] = fma_flushed(row[p], token, sum[p][n]);
    }
  }
};

// P panels x N tokens, all sums in registers.
template <class Products, int P, int N>
inline void pairs_tile(const PairBlock& b, std::int64_t panel) {
  const std::uint32_t* const panels = b.panels + panel * b.panel_stride;  // [k][16], the next panel panel_stride on
  const bool part = panel + P == b.n_panels && b.last_rows < 16;          // the last of them
  f32x16 sum[P][N];
  for (int p = 0; p < P; ++p) {
    for (int n = 0; n < N; ++n) {
      const float* out = b.out + n * b.out_stride + (panel + p) * 16;
      sum[p][n] = b.first ? set1(0.0F) : part && p == P - 1 ? load_part(out, b.last_rows) : load(out);
    }
  }
  const std::uint32_t* x = b.x;
  for (std::int64_t k = 0; k < b.n_k; ++k, x += N) {
    if constexpr (N <= kFewTokens) ask_next<P>(b, panels, k);  // what limits few tokens is memory
    Products::template add<P, N>(panels + k * 16, b.panel_stride, x, sum);
  }
  for (int p = 0; p < P; ++p) {
    for (int n = 0; n < N; ++n) {
      float* out = b.out + n * b.out_stride + (panel + p) * 16;
      if (part && p == P - 1) {
        store_part(out, sum[p][n], b.last_rows);
      } else {
        store(out, sum[p][n]);
      }
    }
  }
}

template <class Products, int N>
inline void pairs_at_most(const PairBlock& b) {
  if (b.n_tokens < N) {
    if constexpr (N > 1) pairs_at_most<Products, N - 1>(b);
    return;
  }
  constexpr int P = panels_for(N) < 2 ? 1 : 2;
  std::int64_t panel = 0;
  for (; panel + P <= b.n_panels; panel += P) pairs_tile<Products, P, N>(b, panel);
  if constexpr (P > 1) {
    if (panel < b.n_panels) pairs_tile<Products, 1, N>(b, panel);
  }
}

// Not inlined: compilers know nothing of modes, and would take arithmetic out of where one is set.
template <class Products>
LLAMA2CPP_NOINLINE void multiply_pairs(const PairBlock& b) {
  pairs_at_most<Products, kTileTokens>(b);
}

template <class Products>
inline void matmul_pairs(const PairBlock& b) {
  Products::run(b, multiply_pairs<Products>);
}
